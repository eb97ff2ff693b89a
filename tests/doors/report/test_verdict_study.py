"""The verdict on a study counts correctly: seeds that rose, results that have the measure, steps."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.doors.records.study import Study
from reprune.doors.report.rows import bring_together
from reprune.doors.report.verdict_study import Step, pitfalls, steps_in_vain
from tests.doors.report.records import cell, fitted, judged, said, study_record, verdict_on, window


def of(rung: str, perplexity: float | None, seed: int = 0, pruner: str = "wanda", **changes: Any) -> Any:
    measured = {} if perplexity is None else {"test.txt": perplexity}
    return cell(pruner, rung, seed=seed, perplexity=measured, **changes)


def test_a_step_rises_in_the_seeds_whose_two_numbers_are_known_and_rose() -> None:
    """Seeds 0 to 4: risen, fallen, the same, known only below, known only above."""
    below, above = (30.0, 30.0, 30.0, 30.0, None), (31.0, 29.0, 30.0, None, 31.0)
    cells = [of("LR", value, seed) for seed, value in enumerate(below)]
    cells += [of("BR", value, seed) for seed, value in enumerate(above)]
    cells += [of("LR", 30.0, seed=5), of("BR", 31.0, seed=6)]  # each without the other
    rows = bring_together(Study.model_validate(study_record(cells)))
    (measure,) = rows.perplexities
    lower, upper = rows.families[0].rows
    assert Step(lower, upper, measure).seeds == (1, 3)


def test_a_seed_in_which_a_measure_rises_by_less_than_noise_is_not_counted() -> None:
    cells = [of(rung, 30.0, seed) for seed in (0, 1, 2) for rung in ("LR", "BR")]
    for cell_of_seed, value in zip(cells[1::2], (33.0, 30.2, 30.2), strict=True):
        cell_of_seed["perplexity"] = {"test.txt": value}
    assert "perplexity on test.txt rises by 3.8 % (from 30.00 to 31.13, in 1 of 3 seeds)" in said(judged(*cells))


def test_a_pitfall_that_only_one_of_several_seeds_can_show_says_so() -> None:
    cells = [of("LR", 30.0), of("LR", 30.0, seed=1), of("BR", 33.0)]
    assert "rises by 10.0 % (from 30.00 to 33.00, in 1 of 1 seed)" in said(judged(*cells))
    assert "seed)" not in said(judged(cells[0], cells[2]))


def test_results_of_different_seeds_are_not_said_to_be_of_one() -> None:
    text = said(judged(of("LR", 60.0), of("BR", 50.0, seed=1)))
    assert "one seed" not in text
    assert "Not all results have the same seeds" in text


def test_a_held_out_error_that_rises_is_a_pitfall() -> None:
    lower = cell("wanda", "BR")
    upper = cell("wanda", "BR+GP", relative_heldout_error=1.1 * lower["relative_heldout_error"])
    rows = bring_together(Study.model_validate(study_record([lower, upper])))
    assert [step.measure.kind for step in pitfalls(rows)] == ["heldout"]
    assert "but held-out error rises by 10.0 % (" in verdict_on([lower, upper])


@pytest.mark.parametrize(("fit", "steps"), [(0.98, 1), (0.995, 0), (1.0, 0)])
def test_a_step_is_in_vain_only_where_the_fit_is_closer(fit: float, steps: int) -> None:
    lower = cell("wanda", "BR")
    closer = {"relative_calibration_error": fit * lower["relative_calibration_error"]}
    upper = cell("wanda", "BR+GP", perplexity=lower["perplexity"], **closer)
    assert len(steps_in_vain(bring_together(Study.model_validate(study_record([lower, upper]))))) == steps


def test_a_pitfall_between_pruners_is_one_beside_a_ladder_without_too() -> None:
    ladder = [of("LR", 60.0), of("BR", 50.0)]
    alone, verdict = judged(*ladder), judged(*ladder, of("BR", 90.0, pruner="sparsegpt"))
    assert (alone.tone, alone.badge) == ("good", "No pitfall seen")
    assert alone.headline.startswith("Where the calibration error fell from rung to rung")
    assert "Between pruners: sparsegpt ends at a lower calibration error than wanda" in said(verdict)
    assert (verdict.tone, verdict.badge) == ("mixed", "Pitfall seen")
    assert (
        "one pruner ends at the lower error, another at the better model, though no step from rung to rung"
        in verdict.headline
    )


@pytest.mark.parametrize(("perplexity", "pitfall"), [(52.0, True), (50.2, False), (45.0, False), (None, False)])
def test_a_closer_fit_of_auto_that_is_a_worse_model_than_the_best_rung_is_a_pitfall(
    perplexity: float | None, pitfall: bool
) -> None:
    ladder = [of("LR", 60.0), of("BR", 50.0), of("BR+GP", 51.0)]
    found = judged(ladder[0], ladder[1], of("auto", perplexity))
    assert found.badge == ("Pitfall seen" if pitfall else "No pitfall seen")
    assert ("at 1 step from rung to rung it fell while" in found.headline) == pitfall
    assert ("The pitfall with wanda: from BR to auto the calibration error falls by" in said(found)) == pitfall
    assert "of a ladder it fell while" in judged(*ladder, of("auto", 45.0)).headline
    assert judged(ladder[1], of("auto", perplexity)).badge == ("Pitfall seen" if pitfall else "No ladder")


def test_results_without_what_the_best_is_chosen_by_are_not_counted() -> None:
    assert "The best of 1 result is wanda with LR: perplexity on test.txt 60.00" in said(
        judged(of("LR", 60.0), of("BR", None))
    )


def test_the_best_is_held_against_the_dense_model_by_its_mean() -> None:
    text = said(judged(of("LR", 53.82), of("LR", 26.91, seed=1)))
    assert "40.37 (26.91 to 53.82), which is 1.50 times the dense model's 26.91." in text


def test_a_study_is_of_one_seed_only_where_every_result_is() -> None:
    one_seed = "All of this comes from one seed"
    ladder = [of("LR", 60.0), of("BR", 50.0)]
    assert one_seed in said(judged(*ladder))
    assert one_seed not in said(judged(*ladder, of("BR", 51.0, seed=1)))


def test_seeds_that_differ_are_said_where_the_best_alone_is_chosen_by_them() -> None:
    cells = [of("LR", 60.0), of("LR", 50.0, seed=1), of("LR", 70.0, pruner="magnitude")]
    assert "Not all results have the same seeds" in said(judged(*cells))


def test_a_loss_that_auto_and_the_ladder_share_is_no_difference() -> None:
    cells = [of(rung, 50.0) for rung in ("LR", "BR", "auto")]
    for each in (each for one in cells for each in one["windows"]):
        each["loss"] = "standardized"
    assert "auto against the best fixed rung" in said(judged(*cells))
    assert "standardized loss" not in said(judged(*cells))


def test_a_rung_that_was_not_measured_is_not_the_best_fixed_one() -> None:
    text = said(judged(of("LR", None), of("BR", 50.0), of("auto", 45.0)))
    assert "best fixed rung, by perplexity on test.txt: wanda 10.0 % below BR." in text


def test_the_time_of_auto_is_held_against_that_of_the_highest_rung_alone() -> None:
    cells = [of(rung, 50.0) for rung in ("LR", "BR", "auto")]
    assert "Time of auto" not in said(judged(*cells))
    assert "Time of auto over that of BR+GP+CR: 0.82 with wanda." in said(judged(*cells, of("BR+GP+CR", 50.0)))


def test_windows_that_training_harmed_are_not_said_to_overfit() -> None:
    one = of("BR", 50.0, windows=[window(0, [1.0, 1.2], [1.0, 1.5]), window(1, [1.0, 0.8], [1.0, 1.5])])
    untrained = of("LR", 60.0, windows=[fitted(0, epochs=0)])
    assert "1 of the 2 trained windows of all cells overfitted." in said(judged(untrained, one))


def test_a_seed_without_a_finite_number_is_in_no_range() -> None:
    cells = [of("LR", value, seed) for seed, value in enumerate((30.0, float("inf"), 40.0))]
    assert "perplexity on test.txt 35.00 (30.00 to 40.00)" in said(judged(*cells))


def test_where_no_seed_is_common_to_all_the_best_is_of_all_seeds() -> None:
    assert "The best of 2 results is wanda with BR: perplexity on test.txt 50.00" in said(
        judged(of("LR", 60.0), of("BR", 50.0, seed=1))
    )


def test_a_result_without_the_measure_has_no_say_in_the_seeds() -> None:
    text = said(judged(of("LR", 60.0), of("BR", None), of("BR+GP", 50.0)))
    assert "perplexity on test.txt falls from LR to BR+GP" in text
