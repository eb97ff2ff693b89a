"""The verdict says what the numbers amount to, by rules that a reader can check, and nothing that they do not show."""

from __future__ import annotations

import re
from typing import Any

import pytest

from reprune.doors.report.course import course, direction
from reprune.doors.report.records import Run, Study, Window
from reprune.doors.report.rows import bring_together
from reprune.doors.report.verdict import Verdict, guard_sentences, rise, rises, run_verdict
from reprune.doors.report.verdict_study import pitfalls, study_verdict
from tests.doors.report.records import RUNGS, cell, fitted, run_record, said, study_record, verdict_on, window


def judged(**changes: Any) -> Verdict:
    return run_verdict(Run.model_validate(run_record(**changes)))


def seen(calibration: list[float], heldout: list[float], **options: Any) -> Any:
    return rise(Window.model_validate(window(0, calibration, heldout, **options)))


def test_a_window_overfits_where_the_held_out_error_rises_while_the_calibration_error_falls() -> None:
    found = seen([1.0, 0.8, 0.6, 0.5], [1.0, 0.9, 0.95, 1.08])
    assert (found.kind, found.lowest_epoch, found.kept) == ("overfits", 1, False)
    assert found.share == pytest.approx(0.2)
    assert seen([1.0, 0.8, 0.6], [1.0, 0.9, 0.8]) is None
    assert seen([1.0, 0.8, 0.6], [1.0, 0.9, 0.908]) is None, "less than 1 % is noise"
    assert seen([1.0, 0.8, 0.6], [1.0, 0.9, 0.91]).kind == "overfits"
    assert seen([1.0, 0.8], [1.0, 1.2]).lowest_epoch == 0, "the start counts"
    assert seen([1.0], [1.0]) is None, "nothing was trained"


def test_training_that_lowers_neither_error_is_harm_and_no_overfitting() -> None:
    assert seen([1.0, 3.0, 2.0], [1.0, 2.0, 1.5]).kind == "harmed"
    assert seen([1.0, 0.995], [1.0, 2.0]).kind == "harmed"
    # the mean on the way to the last epoch, while the weights after it were kept: their own error counts
    kept = window(0, [1.0, 1.0], [1.0, 2.0], guard=False)
    kept["relative_calibration_error"]["after"] = 0.5
    found = rise(Window.model_validate(kept))
    assert found is not None
    assert (found.kind, found.kept) == ("overfits", True)


def test_the_worst_window_comes_first() -> None:
    windows = [window(i, [1.0, 0.5], [1.0, last]) for i, last in enumerate((1.1, 1.3, 0.9, 1.2))]
    assert [found.window.index for found in rises([Window.model_validate(one) for one in windows])] == [1, 3, 0]


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
    assert "17.5 % less of that window's held-out error than the state after the last epoch" in text


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
    for one in windows:  # the error by which states are told apart falls
        one["standardized_heldout_error"] = {"before": 1.0, "after": 0.9}
        one["epochs"][0]["standardized_heldout_error"] = 0.9
    verdict = judged(windows=windows)
    assert (verdict.tone, verdict.badge) == ("bad", badge)
    assert headline in said(verdict)
    assert "No window overfits" in said(verdict)


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


PRUNED = [fitted(index, epochs=0) for index in range(4)]
LEAST_SQUARES = [{**one, "least_squares": [{"block": 0, "linears": ["mlp.up_proj"], "ridge": 0.3}]} for one in PRUNED]


def distilled(after: float) -> dict[str, Any]:
    return {
        "blocks": [2, 3],
        "heldout_divergence": {"before": 0.1, "after": after},
        "epochs": [{"epoch": 1, "calibration_divergence": 0.1, "heldout_divergence": after}],
        "kept_epoch": 1,
        "seconds": 3.0,
    }


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


def test_records_from_before_the_guard_told_what_it_did() -> None:
    old = [window(i, [1.0, 0.7, 0.5], [1.0, 0.8, 1.0], guard=None) for i in range(2)]
    text = said(judged(windows=old))
    assert "2 of 2 trained windows overfit" in text
    assert "In each, an earlier state was put back." in text
    assert "The guard" not in text


def test_what_the_guard_saved_is_counted() -> None:
    windows = [window(0, [1, 0.9, 0.8, 0.7], [1, 0.8, 0.9, 1.0], planned=10), window(1, [1, 0.9], [1, 0.5], planned=1)]
    text = " ".join(guard_sentences([Window.model_validate(one) for one in windows]))
    assert (
        "put an earlier state back in 1 of 2 windows and stopped 1 window early, which saved 7 of 11 planned epochs"
        in text
    )
    assert "20.0 % less" in text.replace("\N{NO-BREAK SPACE}", " ")


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


def test_a_course_along_the_ladder_is_put_into_words() -> None:
    assert course([("LR", 5.0), ("BR", 4.0), ("BR+GP", 3.0)]) == "falls at every step"
    assert course([("LR", 5.0), ("BR", 4.0), ("BR+GP", 4.2)]) == "falls up to BR, then rises up to BR+GP"
    assert (
        course([("LR", 5.0), ("BR", 4.0), ("BR+GP", 4.02)])
        == "falls up to BR, then stays within 1\N{NO-BREAK SPACE}% up to BR+GP"
    )
    assert course([("LR", 5.0), ("BR", None), ("BR+GP", 4.0)]) == "falls from LR to BR+GP"
    assert course([("LR", None), ("BR", 4.0)]) is None
    assert [direction(1.0, value) for value in (1.02, 1.005, 0.98, None)] == ["rises", "stays", "falls", None]


def test_a_study_finds_the_pitfall_where_the_fit_gets_closer_and_the_text_worse() -> None:
    study = Study.model_validate(study_record())
    rows = bring_together(study)
    found = pitfalls(rows)
    assert {(one.family, one.lower.rung, one.upper.rung) for one in found} == {
        (pruner, "BR+GP", "BR+GP+CR") for pruner in ("magnitude", "wanda", "sparsegpt")
    }
    assert {one.measure.kind for one in found} == {"test", "perplexity"}, (
        "held-out error falls, as calibration error does"
    )
    verdict = study_verdict(study, rows)
    assert (verdict.tone, verdict.badge) == ("mixed", "Pitfall seen")
    text = said(verdict)
    assert "at 3 steps of a ladder it fell while" in text
    assert (
        "Best of 15 results is sparsegpt with auto: perplexity on test.txt 43.82, which is 1.63 times the dense" in text
    )
    assert (
        "Along the ladder of magnitude, wanda and sparsegpt, calibration error and held-out error fall at every step"
        in text
    )
    assert (
        "The pitfall with wanda: from BR+GP to BR+GP+CR the calibration error falls by 38.0 %, but test error" in text
    )
    assert "perplexity on test.txt rises by 4.3 % (from 58.76 to 61.31)" in text
    assert "auto against the best fixed rung, by held-out error: magnitude 18.8 % above BR+GP+CR" in text
    assert "by perplexity on test.txt: magnitude 18.6 % below BR+GP" in text
    assert "Time of auto over that of BR+GP+CR: 0.82 with magnitude" in text
    assert "All of this is of one seed: differences of a few percent may be chance." in text


def test_a_run_whose_loss_is_of_one_feature_says_so() -> None:
    record = run_record()
    assert "one feature" not in said(run_verdict(Run.model_validate(record)))
    for each, share in zip(record["windows"], (0.2, 0.5, 0.51, 0.95), strict=True):
        each["largest_feature"] = share
    text = said(run_verdict(Run.model_validate(record)))
    assert "In 2 of 4 trained windows one feature has most of the power of what the loss compares, up to 95.0 %" in text
    for each in record["windows"]:
        each["loss"] = "standardized"
    assert "one feature" not in said(run_verdict(Run.model_validate(record)))


@pytest.mark.parametrize(
    ("rate", "steps"),
    [(0.0008, "0.08 %: shorter"), (0.01, None), (0.2, "20.0 %: longer"), (None, None)],
)
def test_a_rate_far_from_the_weights_size_is_said(rate: float | None, steps: str | None) -> None:
    record = run_record()
    for each in record["windows"]:
        each["relative_lr"] = each["epochs"][0]["relative_lr"] = rate
    text = said(run_verdict(Run.model_validate(record)))
    assert ("learning rate" in text) == (steps is not None)
    if steps:
        size, _, kind = steps.partition(": ")
        assert f"The learning rate is {size} of the kept weights' root mean square" in text
        assert f"{kind} steps than usual. With solver.lr: 1% it goes with the weights." in text
    for each in record["windows"]:  # as where first steps are tried
        each["relative_lr"], each["epochs"][0]["relative_lr"] = 0.01, 0.0001
    assert "learning rate" not in said(run_verdict(Run.model_validate(record)))


def test_a_study_in_which_auto_has_another_loss_says_so() -> None:
    cells = [cell("wanda", rung) for rung in RUNGS]
    alike = Study.model_validate(study_record(cells))
    assert "standardized" not in said(study_verdict(alike, bring_together(alike)))
    for each in cells[-1]["windows"]:
        each["loss"] = "standardized"
    other = Study.model_validate(study_record(cells))
    text = said(study_verdict(other, bring_together(other)))
    assert "auto has the standardized loss, the ladder the paper's squared one" in text


def test_a_test_error_of_auto_that_is_above_the_best_rungs_is_said() -> None:
    errors = {"test.txt": {"normalized": 1.0, "relative": 0.2}}
    text = verdict_on([cell("wanda", "BR"), cell("wanda", "auto", test_error=errors)])
    assert "auto against the best fixed rung, by test error on test.txt: wanda 77.3 % above BR." in text
    assert "by test error" not in verdict_on([cell("wanda", "BR"), cell("wanda", "auto")])


def test_a_study_without_the_pitfall_says_so() -> None:
    cells = [cell("wanda", rung) for rung in ("LR", "BR", "BR+GP")]
    study = Study.model_validate(study_record(cells))
    verdict = study_verdict(study, bring_together(study))
    assert (verdict.tone, verdict.badge) == ("good", "No pitfall seen")
    assert "The pitfall" not in said(verdict)
    assert "auto" not in said(verdict)


def test_a_closer_fit_that_leaves_something_as_it_was_is_said_to_be_in_vain() -> None:
    lower = cell("wanda", "BR+GP")
    upper = cell("wanda", "BR+GP+CR", perplexity=lower["perplexity"], test_error={})
    study = Study.model_validate(study_record([lower, upper]))
    verdict = study_verdict(study, bring_together(study))
    assert verdict.headline.endswith("by more than 1\N{NO-BREAK SPACE}%; but at 1 step not all of it fell with it.")
    assert (
        "In vain, by perplexity on test.txt, with wanda from BR+GP to BR+GP+CR: the calibration error falls by 38.0 %, "
        "and that stays within 1 %."
    ) in said(verdict)
    rising = {**upper, "relative_heldout_error": 2 * lower["relative_heldout_error"]}
    assert "In vain" not in said(
        study_verdict(study, bring_together(Study.model_validate(study_record([lower, rising]))))
    )


def test_a_rise_is_no_pitfall_where_the_fit_gets_no_closer() -> None:
    lower = cell("wanda", "BR+GP")
    for calibration in (1.0, 1.5):
        fit = {"relative_calibration_error": calibration * lower["relative_calibration_error"]}
        upper = cell("wanda", "BR+GP+CR", **fit)
        assert not pitfalls(bring_together(Study.model_validate(study_record([lower, upper]))))


def test_several_seeds_are_told_apart() -> None:
    cells = [cell("wanda", rung, seed=seed) for rung in ("BR+GP", "BR+GP+CR") for seed in (0, 1, 2)]
    cells[3]["perplexity"] = {"test.txt": 50.0}  # of seed 0, below that of BR+GP
    cells[4]["perplexity"] = {"test.txt": 80.0}
    text = verdict_on(cells)
    assert "in 2 of 3 seeds" in text
    assert "one seed" not in text
    assert "Best of 2 results" in text


def test_rows_are_compared_by_the_seeds_that_they_have_in_common() -> None:
    easy = {"test_error": {"test.txt": {"normalized": 1.0, "relative": 0.01}}, "perplexity": {"test.txt": 29.0}}
    cells = [cell("wanda", rung) for rung in ("LR", "BR")]
    text = verdict_on([*cells, cell("wanda", "LR", seed=1, **easy), cell("wanda", "BR", seed=1, status="failed")])
    for found in (text, verdict_on(cells)):
        assert "nothing else that was measured rose" in found
        assert "Best of 2 results is wanda with BR" in found
        assert "perplexity on test.txt fall from LR to BR" in found
    assert "Not all results have the same seeds: they are compared by the seeds that they have in common." in text
    assert "the same seeds" not in verdict_on(cells)
    auto = [cell("wanda", "auto"), cell("wanda", "auto", seed=1, perplexity={"test.txt": 999.0})]
    found = verdict_on([*cells, *auto])
    assert re.search(r"auto against the best fixed rung, by perplexity on test.txt: wanda [\d.]+ % below BR", found)
    closer = cell("sparsegpt", "LR", perplexity={"test.txt": 120.0})
    assert "120.00 against" in verdict_on([cells[0], closer, cell("sparsegpt", "LR", seed=1, **easy)])


def test_the_best_is_chosen_by_what_was_measured() -> None:
    cells = [cell("wanda", rung, perplexity={}) for rung in ("LR", "BR")]
    assert "wanda with BR: test error on test.txt 11.3 %." in verdict_on(cells)
    cells = [cell("wanda", rung, perplexity={}, test_error={}) for rung in ("LR", "BR")]
    assert "wanda with BR: held-out error 8.11 %." in verdict_on(cells)
    cells = [cell("wanda", rung, perplexity={"test.txt": float("nan")}) for rung in ("LR", "BR")]
    assert "wanda with BR: test error" in verdict_on(cells)


def test_cells_that_did_not_end_are_told_and_not_counted() -> None:
    cells = [cell("wanda", "LR"), cell("wanda", "BR", status="failed"), cell("wanda", "BR+GP", status="pending")]
    text = verdict_on(cells)
    assert "Of 3 cells, 1 failed and 1 is not finished yet; they are not counted here." in text
    assert "one rung only" in text
    assert "No cell that prunes whole blocks is finished." in verdict_on(cells[1:])


def test_cells_of_another_sparsity_or_part_are_no_rung_of_the_same_ladder() -> None:
    half = [cell("wanda", rung) for rung in RUNGS]
    other = [cell("wanda", rung, sparsity="2:4", name=f"x{rung}") for rung in RUNGS]
    mlp = [cell("wanda", rung, only="mlp", name=f"m{rung}") for rung in RUNGS]
    rows = bring_together(Study.model_validate(study_record([*half, *other, *mlp])))
    assert [family.name.replace("\N{NO-BREAK SPACE}", " ") for family in rows.families] == ["wanda 0.5", "wanda 2:4"]
    assert [len(family.rows) for family in rows.families] == [5, 5]
    assert {row.only for row in rows.parts} == {"mlp"}
    assert rows.rungs == RUNGS


def own(count: int, rung: str = "BR+GP", seed: int = 0, **measured: float) -> Any:
    """A cell with so many samples of its own."""
    test_error, perplexity = measured.pop("test", 0.04), measured.pop("perplexity", 50.0)
    changes = {"test_error": {"test.txt": {"normalized": 1.0, "relative": test_error}}}
    return cell(
        "wanda", rung, seed=seed, self_generate=count, perplexity={"test.txt": perplexity}, **changes, **measured
    )


def test_samples_of_its_own_help_where_what_is_measured_falls() -> None:
    cells = [own(0), own(32, test=0.036, perplexity=50.2), own(128, test=0.03, perplexity=47.0)]
    text = verdict_on(cells)
    assert (
        "What falls from the fewest self-generated samples to the most, by pruner and rung: "
        "test error on test.txt in 1 of 1 and perplexity on test.txt in 1 of 1." in text
    )
    assert (
        "With 0 to 128 samples of its own beside the others, wanda with BR+GP: test error on test.txt (4.00 % to "
        "3.00 %) falls at every step; perplexity on test.txt (50.00 to 47.00) stays within 1 % up to 32, then falls up "
        "to 128." in text
    )
    assert "held-out error (" not in text, "held-out samples are others at each number"


@pytest.mark.parametrize(
    ("test", "perplexity", "badge"),
    [
        (0.03, 45.0, "Own samples help"),
        (0.03, 50.1, "Own samples help in part"),
        (0.05, 51.0, "Own samples do not help"),
    ],
)
def test_a_study_of_own_samples_is_judged_by_both_ends(test: float, perplexity: float, badge: str) -> None:
    record = Study.model_validate(study_record([own(0), own(64, test=test, perplexity=perplexity)]))
    assert study_verdict(record, bring_together(record)).badge == badge


def test_own_samples_are_compared_by_the_seeds_that_all_numbers_of_them_have() -> None:
    cells = [own(0, perplexity=50.0), own(0, perplexity=40.0, seed=1), own(64, perplexity=47.0)]
    text = verdict_on(cells)
    assert "perplexity on test.txt (50.00 to 47.00) falls from 0 to 64" in text
    apart = [own(0, perplexity=50.0), own(64, perplexity=47.0, seed=1)]
    assert "perplexity on test.txt (50.00 to 47.00) falls from 0 to 64" in verdict_on(apart)


def test_held_out_errors_are_compared_where_their_text_was_given() -> None:
    record = study_record([own(0), own(64, relative_heldout_error=0.01)])
    record["settings"]["heldout"] = ["held.txt=16"]
    study = Study.model_validate(record)
    assert "held-out error (" in said(study_verdict(study, bring_together(study)))


def test_a_ladder_is_the_verdict_and_own_samples_are_told_beside_it() -> None:
    cells = [own(count, rung) for count in (0, 32) for rung in ("LR", "BR")]
    text = verdict_on(cells)
    assert "What falls from the fewest" not in text
    assert "wanda with LR: " in text and "wanda with BR: " in text
    assert "of its own beside the others" not in verdict_on(cells[:2])
