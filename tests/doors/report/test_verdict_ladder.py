"""The verdict on a study follows its ladder and its self-generated samples, by rules that a reader can check."""

from __future__ import annotations

import re
from typing import Any

import pytest

from reprune.doors.records.study import Study
from reprune.doors.report.course import course, direction
from reprune.doors.report.rows import bring_together
from reprune.doors.report.verdict_study import pitfalls, study_verdict
from tests.doors.report.records import RUNGS, cell, judged, said, study_record, verdict_on


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
    found = pitfalls(bring_together(Study.model_validate(study_record())))
    assert {(one.lower.family, one.lower.rung, one.upper.rung) for one in found} == {
        (pruner, "BR+GP", "BR+GP+CR") for pruner in ("magnitude", "wanda", "sparsegpt")
    }
    assert {one.measure.kind for one in found} == {"test", "perplexity"}, (
        "held-out error falls, as calibration error does"
    )
    verdict = judged()
    assert (verdict.tone, verdict.badge) == ("mixed", "Pitfall seen")
    text = said(verdict)
    assert "at 3 steps of a ladder it fell while" in text
    assert (
        "The best of 15 results is sparsegpt with auto: perplexity on test.txt 43.82, which is 1.63 times the dense"
        in text
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
    assert "All of this comes from one seed: differences of a few percent may be chance." in text


def test_a_study_in_which_auto_has_another_loss_says_so() -> None:
    cells = [cell("wanda", rung) for rung in RUNGS]
    assert "standardized" not in verdict_on(cells)
    for each in cells[-1]["windows"]:
        each["loss"] = "standardized"
    assert "auto uses the standardized loss, the ladder the paper's squared one" in verdict_on(cells)


def test_a_test_error_of_auto_that_is_above_the_best_rungs_is_said() -> None:
    errors = {"test.txt": {"normalized": 1.0, "relative": 0.2}}
    text = verdict_on([cell("wanda", "BR"), cell("wanda", "auto", test_error=errors)])
    assert "auto against the best fixed rung, by test error on test.txt: wanda 77.3 % above BR." in text
    assert "by test error" not in verdict_on([cell("wanda", "BR"), cell("wanda", "auto")])


def test_a_study_without_the_pitfall_says_so() -> None:
    verdict = judged(*(cell("wanda", rung) for rung in ("LR", "BR", "BR+GP")))
    assert (verdict.tone, verdict.badge) == ("good", "No pitfall seen")
    assert "The pitfall" not in said(verdict)
    assert "auto" not in said(verdict)


def test_a_closer_fit_that_leaves_something_as_it_was_is_said_to_be_in_vain() -> None:
    lower = cell("wanda", "BR+GP")
    upper = cell("wanda", "BR+GP+CR", perplexity=lower["perplexity"], test_error={})
    verdict = judged(lower, upper)
    assert verdict.headline.endswith("by more than 1\N{NO-BREAK SPACE}%; but at 1 step not all measures fell.")
    assert (
        "In vain with wanda: the calibration error falls by 38.0 % from BR+GP to BR+GP+CR, "
        "but perplexity on test.txt stays within 1 %."
    ) in said(verdict)
    rising = {**upper, "relative_heldout_error": 2 * lower["relative_heldout_error"]}
    assert "In vain" not in verdict_on([lower, rising])


def test_steps_that_are_in_vain_for_the_same_measures_share_a_sentence() -> None:
    first = cell("wanda", "LR", test_error={})
    cells = [first, *(cell("wanda", rung, test_error={}, perplexity=first["perplexity"]) for rung in ("BR", "BR+GP"))]
    assert (
        "In vain with wanda: the calibration error falls by 38.0 % from LR to BR and by 38.0 % from BR to BR+GP, "
        "but perplexity on test.txt stays within 1 %."
    ) in verdict_on(cells)


def test_a_rise_is_no_pitfall_where_the_fit_gets_no_closer() -> None:
    lower = cell("wanda", "BR+GP")
    for calibration in (1.0, 1.5):
        fit = {"relative_calibration_error": calibration * lower["relative_calibration_error"]}
        upper = cell("wanda", "BR+GP+CR", **fit)
        assert not pitfalls(bring_together(Study.model_validate(study_record([lower, upper]))))


def test_several_seeds_are_told_apart() -> None:
    cells = [cell("wanda", rung, seed=seed) for rung in ("BR+GP", "BR+GP+CR") for seed in (0, 1, 2)]
    cells[3]["perplexity"] = {"test.txt": 50.0}  # for seed 0, below that of BR+GP
    cells[4]["perplexity"] = {"test.txt": 80.0}
    text = verdict_on(cells)
    assert "in 2 of 3 seeds" in text
    assert "one seed" not in text
    assert "The best of 2 results" in text


def test_rows_are_compared_by_the_seeds_that_they_have_in_common() -> None:
    easy = {"test_error": {"test.txt": {"normalized": 1.0, "relative": 0.01}}, "perplexity": {"test.txt": 29.0}}
    cells = [cell("wanda", rung) for rung in ("LR", "BR")]
    text = verdict_on([*cells, cell("wanda", "LR", seed=1, **easy), cell("wanda", "BR", seed=1, status="failed")])
    for found in (text, verdict_on(cells)):
        assert "no other error and no perplexity rose" in found
        assert "The best of 2 results is wanda with BR" in found
        assert "perplexity on test.txt fall from LR to BR" in found
    assert "Not all results have the same seeds: they are compared over the seeds that they have in common." in text
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
    assert "has only one rung" in text
    assert "No cell that prunes whole blocks is finished." in verdict_on(cells[1:])


def test_cells_of_another_part_or_with_own_samples_are_no_rung_of_the_same_ladder() -> None:
    whole = [cell("wanda", rung) for rung in RUNGS]
    other = [cell("wanda", rung, self_generate=32, name=f"x{rung}") for rung in RUNGS]
    mlp = [cell("wanda", rung, only="mlp", name=f"m{rung}") for rung in RUNGS]
    rows = bring_together(Study.model_validate(study_record([*whole, *other, *mlp])))
    assert [family.name for family in rows.families] == ["wanda", "wanda+32"]
    assert [len(family.rows) for family in rows.families] == [5, 5]
    assert {row.only for row in rows.parts} == {"mlp"}
    assert rows.rungs == RUNGS


def own(count: int, rung: str = "BR+GP", seed: int = 0, **measured: float) -> Any:
    """A cell with so many self-generated samples."""
    test_error, perplexity = measured.pop("test", 0.04), measured.pop("perplexity", 50.0)
    changes = {"test_error": {"test.txt": {"normalized": 1.0, "relative": test_error}}}
    return cell(
        "wanda", rung, seed=seed, self_generate=count, perplexity={"test.txt": perplexity}, **changes, **measured
    )


def test_samples_of_its_own_help_where_what_is_measured_falls() -> None:
    cells = [own(0), own(32, test=0.036, perplexity=50.2), own(128, test=0.03, perplexity=47.0)]
    text = verdict_on(cells)
    assert (
        "How often each measure falls from the fewest self-generated samples to the most, by pruner and rung: "
        "test error on test.txt in 1 of 1 and perplexity on test.txt in 1 of 1." in text
    )
    assert (
        "With 0 to 128 self-generated samples, wanda with BR+GP: test error on test.txt (4.00 % to "
        "3.00 %) falls at every step; perplexity on test.txt (50.00 to 47.00) stays within 1 % up to 32, then falls up "
        "to 128." in text
    )
    assert "held-out error (" not in text, "held-out samples are others at each number"


@pytest.mark.parametrize(
    ("test", "perplexity", "badge"),
    [
        (0.03, 45.0, "Self-generated samples help"),
        (0.03, 50.1, "Self-generated samples help in part"),
        (0.05, 51.0, "Self-generated samples do not help"),
    ],
)
def test_a_study_of_own_samples_is_judged_by_both_ends(test: float, perplexity: float, badge: str) -> None:
    assert judged(own(0), own(64, test=test, perplexity=perplexity)).badge == badge


def test_own_samples_are_compared_by_the_seeds_that_all_numbers_of_them_have() -> None:
    cells = [own(0, perplexity=50.0), own(0, perplexity=40.0, seed=1), own(64, perplexity=47.0)]
    text = verdict_on(cells)
    assert "perplexity on test.txt (50.00 to 47.00) falls from 0 to 64" in text
    apart = [own(0, perplexity=50.0), own(64, perplexity=47.0, seed=1)]
    assert "self-generated" not in verdict_on(apart), "no seed in common, so nothing to compare"


def test_held_out_errors_are_compared_where_their_text_was_given() -> None:
    record = study_record([own(0), own(64, relative_heldout_error=0.01)])
    record["settings"]["heldout"] = ["held.txt=16"]
    study = Study.model_validate(record)
    assert "held-out error (" in said(study_verdict(study, bring_together(study)))


def test_a_ladder_is_the_verdict_and_own_samples_are_told_beside_it() -> None:
    cells = [own(count, rung) for count in (0, 32) for rung in ("LR", "BR")]
    text = verdict_on(cells)
    assert "From the fewest" not in text
    assert "wanda with LR: " in text and "wanda with BR: " in text
    assert "of its own beside the others" not in verdict_on(cells[:2])
