"""Self-generated samples are compared by their number, from the fewest, over the seeds that all numbers have."""

from __future__ import annotations

from typing import Any

from reprune.doors.records.study import Study
from reprune.doors.report.rows import bring_together
from reprune.doors.report.verdict_selfmade import selfmade_headline
from tests.doors.report.records import cell, study_record, verdict_on


def own(count: int, perplexity: float, seed: int = 0, pruner: str = "wanda") -> Any:
    """A cell with so many self-generated samples."""
    measured = {"perplexity": {"test.txt": perplexity}, "test_error": {}}
    return cell(pruner, "BR+GP", seed=seed, self_generate=count, **measured)


def headline(*cells: Any) -> tuple[str, str]:
    """The badge of the verdict, and what falls in how many lines."""
    study = Study.model_validate(study_record(cells))
    found = selfmade_headline(study, bring_together(study))
    assert found is not None
    return found[1], found[2].partition("by pruner and rung: ")[2]


def test_numbers_are_told_from_the_fewest_in_whatever_order_they_are_on_record() -> None:
    cells = [own(128, 45.0), own(0, 50.0), own(32, 48.0)]
    assert "With 0 to 128 self-generated samples" in verdict_on(cells)
    assert "perplexity on test.txt (50.00 to 45.00) falls at every step" in verdict_on(cells)


def test_the_headline_is_by_the_seeds_that_all_numbers_have() -> None:
    cells = [own(0, 50.0), own(0, 40.0, seed=1), own(64, 47.0)]
    assert headline(*cells) == ("Self-generated samples help", "perplexity on test.txt in 1 of 1.")


def test_a_pruner_that_has_one_number_alone_has_no_say() -> None:
    cells = [own(0, 50.0), own(64, 47.0), own(0, 60.0, pruner="magnitude")]
    assert headline(*cells) == ("Self-generated samples help", "perplexity on test.txt in 1 of 1.")
    worse = own(64, 66.0, pruner="magnitude")
    assert headline(*cells, worse) == ("Self-generated samples help in part", "perplexity on test.txt in 1 of 2.")
