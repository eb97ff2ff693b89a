"""The verdict says what the numbers show, by rules that a reader can check, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.doors.records.run import Run, Window
from reprune.doors.report.verdict import Verdict, guard_sentences, run_verdict
from tests.doors.report.records import distilled, fitted, run_record, said, window


def judged(**changes: Any) -> Verdict:
    return run_verdict(Run.model_validate(run_record(**changes)))


def test_a_run_that_helps_and_overfits_nowhere() -> None:
    verdict = judged(windows=[fitted(i) for i in range(4)])
    assert (verdict.tone, verdict.badge) == ("good", "Helps, no overfitting seen")
    text = said(verdict)
    assert "lowered the windows' held-out error by 31.9 % on average (calibration error: by 48.8 %)" in text
    assert "wanda set 50.0 % of the weights in 28 matrices of 4 blocks to zero." in text
    assert "by 1.60 % of its power on the calibration samples and by 2.30 % on held-out samples: 1.44 times" in text
    assert "No window overfits" in text
    assert "The guard had nothing to do" in text


def test_what_the_guard_takes_back_does_no_harm_but_is_told() -> None:
    verdict = judged()
    assert (verdict.tone, verdict.badge) == ("mixed", "Overfitting taken back")
    text = said(verdict)
    assert (
        "1 of 4 trained windows overfits: window 1. There the held-out error rose by 21.2 % after epoch 1 while" in text
    )
    assert "An earlier state was put back." in text
    assert "The guard put an earlier state back in 1 of 4 windows." in text
    assert "With the earlier state, the held-out error is 17.5 % lower than after the last epoch" in text


def test_overfitting_that_was_kept_is_a_bad_result() -> None:
    over = [window(i, [1.0, 0.7, 0.4], [1.0, 0.8, 1.1], guard=False) for i in range(3)]
    verdict = judged(windows=[*over, fitted(3)])
    assert (verdict.tone, verdict.badge) == ("bad", "Overfits")
    text = said(verdict)
    assert "3 of 4 trained windows overfit: windows 0-2. Worst is window 0" in text
    assert "The weights kept are those of the higher error, in all of them." in text
    assert "The guard was off" not in text, "it was on in window 3"
    off = judged(windows=over)
    assert "The guard was off" in said(off)
    assert (
        "raised the windows' held-out error by 10.0 % on average, while the calibration error fell by 60.0 %"
        in said(off)
    )


@pytest.mark.parametrize(
    ("heldout", "badge", "headline"),
    [
        (0.996, "Fitted in vain", "left the windows' held-out error as it was, within 1 % on average, though the cali"),
        (1.008, "Fitted in vain", "left the windows' held-out error as it was, within 1 % on average, though the cali"),
        (1.02, "Overfits", "raised the windows' held-out error by 2.00 % on average, while the calibration error fell"),
    ],
)
def test_where_no_window_overfits_the_whole_does_only_if_the_held_out_error_rose_on_average(
    heldout: float, badge: str, headline: str
) -> None:
    windows = [window(i, [1.0, 0.97], [1.0, heldout], kept=1) for i in range(3)]
    for one in windows:  # the error by which states are compared falls
        one["standardized_heldout_error"] = {"before": 1.0, "after": 0.9}
        one["epochs"][0]["standardized_heldout_error"] = 0.9
    verdict = judged(windows=windows)
    assert (verdict.tone, verdict.badge) == ("bad", badge)
    assert headline in said(verdict)
    assert "No window overfits" in said(verdict)


def failed(index: int, *epochs: float) -> dict[str, Any]:
    """A window whose fit became NaN after some epochs."""
    made = window(index, [1.0, *epochs], [1.0, *epochs], planned=3)
    return {**made, "guard": {**window(index, [1.0, 1.0], [1.0, 1.0])["guard"], **(made["guard"] or {})}} | {
        "relative_lr": 1e28
    }


def test_a_fit_that_became_nan_is_told_and_no_missing_reconstruction() -> None:
    reason = "the loss became nan in epoch 1; lower --lr (the learning rate, now 1e+30)"
    windows = [failed(0), failed(1)]
    for one in windows:
        one["guard"] |= {"failures": [reason], "planned_epochs": 3, "run_epochs": 0, "stopped_early": True}
    verdict = judged(windows=windows)
    assert (verdict.tone, verdict.badge) == ("bad", "Reconstruction failed")
    assert verdict.headline.startswith("Reconstruction failed in 2 of 2 windows, as an error became NaN or infinite")
    text = said(verdict)
    assert "In windows 0 and 1, an error became NaN or infinite" in text
    assert f"put back: in window 0, {reason}." in text
    assert "longer steps than usual" in text
    some = judged(windows=[windows[0], *(fitted(i) for i in range(1, 4))])
    assert (some.tone, some.badge) == ("mixed", "Helps, but fails in some windows")
    assert f"In window 0, an error became NaN or infinite, and the best state before was put back: {reason}." in said(
        some
    )
    assert "longer steps than usual" not in said(some), "in most windows they are as usual"


def test_an_early_stop_by_nan_is_nothing_that_the_guard_saved() -> None:
    late = failed(0, 0.9)
    late["guard"] |= {"failures": ["the loss became nan in epoch 2; lower --lr"]}
    text = said(judged(windows=[late]))
    assert "the best state before was put back: the loss became nan in epoch 2" in text
    assert "stopped" not in text
    assert "nothing to do" not in text


def test_a_distillation_that_became_nan_is_told() -> None:
    verdict = judged(windows=[fitted(0)], distillation={**distilled(0.1), "failures": ["the loss became nan"]})
    assert (verdict.tone, verdict.badge) == ("mixed", "Helps, but distillation failed")
    assert "In distillation, an error became NaN or infinite" in said(verdict)


def test_whether_a_single_step_that_was_put_back_overfits_is_not_known() -> None:
    back = window(1, [1.0, 1.0], [1.0, 1.2])
    back["epochs"][0]["steps"] = 1
    verdict = judged(windows=[fitted(0), back])
    assert (verdict.tone, verdict.badge) == ("mixed", "Helps, a rise was taken back")
    text = said(verdict)
    assert "No other window overfits" in text
    assert "In window 1, the held-out error rose (by up to 20.0 %). An earlier state was put back. Whether that" in text
    alone = said(judged(windows=[back]))
    assert "window overfits" not in alone
    assert "is overfitting is not known" in alone.replace("\n", " ")


def test_a_run_that_does_not_help() -> None:
    verdict = judged(windows=[window(i, [1.0, 1.5], [1.0, 1.6]) for i in range(2)])
    assert (verdict.tone, verdict.badge) == ("bad", "Does not help")
    text = said(verdict)
    assert "left the windows' held-out error as it was, within 1 % on average." in text
    assert "In windows 0 and 1, training raised the held-out error (by up to 60.0 %)" in text
    assert "the learning rate is likely too high there. In each, an earlier state was put back." in text
    assert "No window overfits" in text


def test_without_reconstruction_there_is_nothing_to_judge() -> None:
    verdict = judged(windows=[fitted(i, epochs=0) for i in range(4)])
    assert (verdict.tone, verdict.badge) == ("plain", "No reconstruction")
    assert "guard" not in said(verdict)
    assert "overfit" not in said(verdict)


def test_an_error_that_is_halved_makes_up_for_one_that_is_doubled() -> None:
    halved, doubled = (window(i, [0.1, last], [0.1, last], guard=False) for i, last in enumerate((0.05, 0.2)))
    assert "left the windows' held-out error as it was" in judged(windows=[halved, doubled]).headline


def test_an_earlier_state_that_is_the_worse_one_is_not_said_to_have_less_error() -> None:
    text = said(judged(windows=[window(0, [0.1, 0.08, 0.07], [0.1, 0.05, 0.049], kept=1)]))
    assert "put an earlier state back in 1 of 1 window" in text
    assert "With the earlier" not in text


PRUNED = [fitted(index, epochs=0) for index in range(4)]
LEAST_SQUARES = [{**one, "least_squares": [{"block": 0, "linears": ["mlp.up_proj"], "ridge": 0.3}]} for one in PRUNED]


def test_least_squares_alone_is_not_called_the_pruner_alone() -> None:
    verdict = judged(windows=LEAST_SQUARES)
    assert (verdict.tone, verdict.badge) == ("plain", "Least squares alone")
    assert "pruner alone" not in said(verdict)


@pytest.mark.parametrize(
    ("after", "tone", "badge", "words"),
    [
        (
            0.08,
            "good",
            "Distillation helps",
            "lowered the held-out divergence of predictions by 20.0 % (from 0.1000 to",
        ),
        (0.1, "bad", "Does not help", "left the held-out divergence of predictions as it was, within 1 %"),
        (0.4, "bad", "Distillation harms", "raised the held-out divergence of predictions by 300 %"),
    ],
)
def test_a_run_that_was_only_distilled_is_judged_by_that(after: float, tone: str, badge: str, words: str) -> None:
    verdict = judged(windows=PRUNED, distillation=distilled(after))
    assert (verdict.tone, verdict.badge) == (tone, badge)
    assert f"Distillation {words}" in verdict.headline.replace("\N{NO-BREAK SPACE}", " ")


def test_distillation_that_harms_is_said_of_a_run_that_helps() -> None:
    windows = [fitted(index) for index in range(4)]
    assert judged(windows=windows, distillation=distilled(0.08)).tone == "good"
    verdict = judged(windows=windows, distillation=distilled(0.4))
    assert (verdict.tone, verdict.badge) == ("mixed", "Helps, but distillation harms")
    assert "Distillation raised the held-out divergence of predictions by 300 %" in said(verdict)


@pytest.mark.parametrize(
    ("pruner", "windows", "words"),
    [
        ("magnitude", PRUNED, "1.50 times, as the held-out text is harder for this model."),
        ("wanda", PRUNED, "1.50 times, so part of what the pruner gains by looking at samples holds for"),
        ("magnitude", LEAST_SQUARES, "1.50 times, so part of what was gained holds for"),
    ],
)
def test_a_gap_is_laid_to_what_looked_at_samples(pruner: str, windows: list[Any], words: str) -> None:
    block = run_record(1)["blocks"][0] | {"relative_calibration_error": 0.01, "relative_heldout_error": 0.015}
    assert words in said(judged(blocks=[block], windows=windows, recipe={"pruner": {"name": pruner}}))


def test_a_calibration_error_that_rises_is_not_said_to_fall() -> None:
    windows = [window(index, [0.5, 0.6], [0.5, 0.4]) for index in range(4)]
    assert "by 20.0 % on average (calibration error: raised by 20.0 %)" in said(judged(windows=windows))


@pytest.mark.parametrize(
    ("heldout", "words"),
    [(0.01, "1.00 times, which is close"), (0.007, "the held-out text is easier"), (0.015, "1.50 times, so part")],
)
def test_the_gap_at_the_last_block_is_put_into_words(heldout: float, words: str) -> None:
    block = run_record(1)["blocks"][0] | {"relative_calibration_error": 0.01, "relative_heldout_error": heldout}
    assert words in said(judged(blocks=[block]))


def test_a_wide_gap_is_not_called_good() -> None:
    block = run_record(1)["blocks"][0] | {"relative_calibration_error": 0.01, "relative_heldout_error": 0.03}
    verdict = judged(blocks=[block], windows=[fitted(0)])
    assert (verdict.tone, verdict.badge) == ("mixed", "Helps, with a wide gap")
    assert "3.00 times, which is far apart" in said(verdict)
    assert "in 7 matrices of 1 block to zero" in said(verdict), "one block is no blocks"


def test_a_block_in_which_nothing_was_pruned_is_not_among_those_that_were() -> None:
    first, *others = run_record()["blocks"]
    verdict = judged(blocks=[{**first, "matrices": []}, *others])
    assert "in 21 matrices of 3 blocks to zero" in said(verdict)


def test_several_windows_that_overfit_are_told_together() -> None:
    text = said(judged(windows=[window(i, [1.0, 0.7, 0.5], [1.0, 0.8, 1.0]) for i in range(2)]))
    assert "2 of 2 trained windows overfit" in text
    assert "In each, an earlier state was put back." in text


def test_what_the_guard_saved_is_counted() -> None:
    windows = [window(0, [1, 0.9, 0.8, 0.7], [1, 0.8, 0.9, 1.0], planned=10), window(1, [1, 0.9], [1, 0.5], planned=1)]
    text = " ".join(guard_sentences([Window.model_validate(one) for one in windows]))
    assert (
        "put an earlier state back in 1 of 2 windows and stopped 1 window early, which saved 7 of 11 planned epochs"
        in text
    )
    assert "20.0 % lower than after" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_auto_says_what_it_chose_how_often() -> None:
    record = run_record()
    recipe = {**record["recipe"], "reconstruct": "auto"}
    windows = [window(0, [1.0, 1.2], [1.0, 1.2]), fitted(1), fitted(2), fitted(3)]
    for index in (2, 3):
        windows[index]["reconstructed"] = [index - 1, index]
    assert (
        "By held-out error, auto chose no change in 1 window, one block in 1 window and 2 blocks together in 2 windows."
        in said(judged(recipe=recipe, windows=windows))
    )
    assert "auto chose" not in said(judged(windows=windows))


def test_a_run_whose_loss_is_of_one_feature_says_so() -> None:
    record = run_record()
    assert "one feature" not in said(run_verdict(Run.model_validate(record)))
    for each, share in zip(record["windows"], (0.2, 0.5, 0.51, 0.95), strict=True):
        each["largest_feature"] = share
    text = said(run_verdict(Run.model_validate(record)))
    assert "In 2 of 4 trained windows, one feature has most of the power that the loss compares (up to 95.0 %)" in text
    for each in record["windows"]:
        each["loss"] = "standardized"
    assert "one feature" not in said(run_verdict(Run.model_validate(record)))


@pytest.mark.parametrize(
    ("rate", "steps"),
    [(0.0008, "0.08 %: shorter"), (0.01, None), (0.2, "20.0 %: longer")],
)
def test_a_rate_far_from_the_weights_size_is_said(rate: float, steps: str | None) -> None:
    record = run_record()
    for each in record["windows"]:
        each["relative_lr"] = each["epochs"][0]["relative_lr"] = rate
    text = said(run_verdict(Run.model_validate(record)))
    assert ("learning rate" in text) == (steps is not None)
    if steps:
        size, _, kind = steps.partition(": ")
        assert f"The learning rate is {size} of the kept weights' root mean square" in text
        assert f"{kind} steps than usual. With solver.lr: 1%, it scales with the weights." in text
    for each in record["windows"]:  # as if first steps were tried
        each["relative_lr"], each["epochs"][0]["relative_lr"] = 0.01, 0.0001
    assert "learning rate" not in said(run_verdict(Run.model_validate(record)))
