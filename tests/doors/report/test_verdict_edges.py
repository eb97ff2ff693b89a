"""The verdict on a run follows its rules at their limits: at 1 %, between means, and with several outcomes at once."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.doors.records.run import Run, Window
from reprune.doors.report.verdict import Verdict, guard_sentences, run_verdict
from tests.doors.report.records import distilled, fitted, run_record, said, window


def judged(*windows: Any, divergence: float | None = None, **changes: Any) -> Verdict:
    """The verdict on a run of these windows; `divergence` is that after distillation, from 0.1."""
    if divergence is not None:
        changes["distillation"] = distilled(divergence)
    return run_verdict(Run.model_validate(run_record(windows=list(windows), **changes)))


def test_averages_over_windows_are_geometric() -> None:
    text = said(judged(window(0, [1.0, 0.25], [1.0, 0.5]), window(1, [1.0, 1.0], [1.0, 1.0], kept=1)))
    assert "lowered the windows' held-out error by 29.3 % on average (calibration error: by 50.0 %)" in text


def test_errors_too_far_apart_for_a_ratio_are_not_counted() -> None:
    text = said(judged(window(0, [1e300, 1e-300], [1.0, 0.9]), window(1, [1.0, 0.5], [1e-300, 1e300], guard=False)))
    assert "lowered the windows' held-out error by 10.0 % on average (calibration error: by 50.0 %)" in text


@pytest.mark.parametrize(
    ("calibration", "badge", "words"),
    [
        (0.995, "Does not help", "as it was, within 1 % on average."),
        (0.98, "Fitted in vain", "as it was, within 1 % on average, though the calibration error fell by 2.00 %."),
    ],
)
def test_a_fit_of_less_than_a_percent_is_noise(calibration: float, badge: str, words: str) -> None:
    verdict = judged(window(0, [1.0, calibration], [1.0, 1.0], kept=1))
    assert (verdict.tone, verdict.badge) == ("bad", badge)
    assert words in said(verdict)


def test_any_rise_of_the_calibration_error_is_called_one() -> None:
    assert "(calibration error: raised by 0.50 %)" in said(judged(window(0, [1.0, 1.005], [1.0, 0.9])))


@pytest.mark.parametrize(
    ("calibration", "words"),
    [(0.995, "and did not help on the calibration text."), (0.9, "while the calibration error fell by 10.0 %.")],
)
def test_what_a_rise_of_the_held_out_error_came_with_is_said(calibration: float, words: str) -> None:
    one = window(0, [1.0, calibration], [1.0, 1.05], guard=False)
    assert f"raised the windows' held-out error by 5.00 % on average, {words}" in said(judged(one))


BAD = window(0, [1.0, 0.7, 0.4], [1.0, 0.8, 1.1], guard=False)
TAKEN_BACK = fitted(0, overfits=True)
PRUNED = fitted(0, epochs=0)


@pytest.mark.parametrize(
    ("one", "tone", "badge"),
    [
        (BAD, "bad", "Overfits"),
        (TAKEN_BACK, "mixed", "Helps, but distillation harms"),
        (PRUNED, "bad", "Distillation harms"),
    ],
)
def test_distillation_that_harms_makes_no_bad_result_better(one: Any, tone: str, badge: str) -> None:
    verdict = judged(one, divergence=0.15)
    assert (verdict.tone, verdict.badge) == (tone, badge)
    assert "raised the held-out divergence" in said(verdict)


@pytest.mark.parametrize("divergence", [0.0995, 0.1005])
def test_a_divergence_that_changes_by_less_than_a_percent_does_not_help(divergence: float) -> None:
    verdict = judged(PRUNED, divergence=divergence)
    assert (verdict.tone, verdict.badge) == ("bad", "Does not help")
    assert "within 1 %" in said(verdict)


def _guarded(*windows: Any) -> str:
    sentences = guard_sentences([Window.model_validate(one) for one in windows])
    return " ".join(sentences).replace("\N{NO-BREAK SPACE}", " ")


def test_a_guard_that_only_stopped_early_is_told() -> None:
    assert _guarded(window(0, [1, 0.9], [1, 0.5], planned=4), fitted(1)) == (
        "The guard stopped 1 window early, which saved 3 of 7 planned epochs."
    )


def test_what_the_guard_put_back_is_a_geometric_mean_over_the_windows_that_it_did_so_in() -> None:
    windows = [window(0, [1, 0.9], [0.25, 1.0]), window(1, [1, 0.9], [1.0, 1.0 / 0.64]), fitted(2)]
    assert "With the earlier states, the held-out errors are 60.0 % lower on average than" in _guarded(*windows)
    broken = window(3, [1, 0.9], [0.25, float("inf")])
    assert "With the earlier states, the held-out errors are 60.0 % lower on average than" in _guarded(*windows, broken)


def _gap(calibration: float, heldout: float, pruner: str = "wanda", one: Any = PRUNED, **options: Any) -> str:
    block = run_record(1)["blocks"][0] | {"relative_calibration_error": calibration, "relative_heldout_error": heldout}
    recipe = {"pruner": {"name": pruner}, **options.pop("recipe", {})}
    return said(judged(one, blocks=[block], recipe=recipe, **options))


@pytest.mark.parametrize(
    ("heldout", "words"),
    [
        (0.75, "0.75 times, as the held-out text is easier"),
        (0.9, "0.90 times, which is close."),
        (1.25, "1.25 times, which is close."),
        (1.3, "1.30 times, so part of"),
        (2.0, "2.00 times, so part of"),
        (2.1, "2.10 times, which is far apart."),
    ],
)
def test_a_gap_is_called_what_the_rules_call_it(heldout: float, words: str) -> None:
    assert words in _gap(1.0, heldout)


def test_magnitude_has_looked_at_samples_where_these_share_out_the_sparsity_or_weights_were_distilled() -> None:
    harder = "as the held-out text is harder for this model."
    assert harder in _gap(1.0, 1.5, "magnitude")
    for allocation in ({"name": "owl"}, "owl"):
        shared_out = _gap(1.0, 1.5, "magnitude", recipe={"allocation": allocation})
        assert "so part of what the pruner gains by looking at samples" in shared_out
    assert "so part of what was gained holds" in _gap(1.0, 1.5, "magnitude", divergence=0.08)


def test_windows_that_overfit_are_counted_among_those_that_were_trained() -> None:
    assert "1 of 1 trained window overfits: window 0." in said(judged(TAKEN_BACK, fitted(1, epochs=0)))


def test_windows_that_kept_the_higher_error_are_told_from_those_that_did_not() -> None:
    text = said(judged(TAKEN_BACK, window(1, [1.0, 0.7, 0.4], [1.0, 0.8, 1.1], guard=False)))
    assert "2 of 2 trained windows overfit: windows 0 and 1." in text
    assert "An earlier state was put back, except in window 1." in text
