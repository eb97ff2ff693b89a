"""Cells are brought together over the seeds that are known: means, ranges and what is compared are of these."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.doors.records.study import Study
from reprune.doors.report.rows import Rows, bring_together, by_block, means
from tests.doors.report.records import cell, study_record


def together(*cells: Any) -> Rows:
    return bring_together(Study.model_validate(study_record(cells)))


def test_a_seed_that_lacks_the_measure_is_common_to_none() -> None:
    cells = [cell("wanda", "LR", seed=seed, perplexity={"test.txt": 60.0 + seed}) for seed in (0, 1)]
    lacking = cell("wanda", "BR", seed=1, perplexity={})
    rows = together(*cells, cell("wanda", "BR", perplexity={"test.txt": 50.0}), lacking)
    (measure,) = rows.perplexities
    assert means(list(rows.rows), measure.of) == [60.0, 50.0]


def test_a_row_by_block_is_the_mean_over_its_seeds() -> None:
    cells = [cell("wanda", "LR", seed=seed) for seed in (0, 1)]
    for one, errors in zip(cells, ((1.0, 4.0), (3.0, float("nan"))), strict=True):
        for block, error in zip(one["blocks"], errors, strict=False):
            block["relative_heldout_error"] = error
    (row,) = together(*cells).rows
    found = by_block(row, lambda place, one: (one.blocks or ())[place].relative_heldout_error, 2)
    assert found == [pytest.approx(2.0), pytest.approx(4.0)]


def test_what_is_written_of_a_row_is_of_its_finite_numbers() -> None:
    values = (30.0, float("inf"), 40.0, float("nan"))
    cells = [cell("wanda", "LR", seed=seed, perplexity={"test.txt": value}) for seed, value in enumerate(values)]
    rows = together(*cells)
    ((row,), (measure,)) = rows.rows, rows.perplexities
    assert row.values(measure.of) == [30.0, 40.0]
    assert row.written(measure.of, measure.written) == "35.00 (30.00 to 40.00)"
