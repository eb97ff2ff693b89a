"""Cells are grouped over their seeds, in the paper's order, with means and ranges of the known values."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.doors.records.rows import Row, perplexities, rows
from reprune.doors.records.study import Study
from tests.doors.report.records import cell, study_record


def together(*cells: Any) -> tuple[Study, list[Row]]:
    study = Study.model_validate(study_record(cells))
    return study, rows(study)


def test_a_row_by_block_is_the_mean_over_its_seeds() -> None:
    cells = [cell("wanda", "LR", seed=seed) for seed in (0, 1)]
    for one, errors in zip(cells, ((1.0, 4.0), (3.0, float("nan"))), strict=True):
        for block, error in zip(one["blocks"], errors, strict=False):
            block["relative_heldout_error"] = error
    _, (row,) = together(*cells)
    found = row.by_block(lambda block: block.relative_heldout_error)
    assert found[:2] == [pytest.approx(2.0), pytest.approx(4.0)]


def test_a_seed_without_blocks_has_no_say_in_them() -> None:
    _, (row,) = together(cell("wanda", "LR"), cell("wanda", "LR", seed=1, blocks=[]))
    assert row.by_block(lambda block: block.index) == [0.0, 1.0, 2.0, 3.0]


def test_what_is_written_of_a_row_is_of_its_finite_numbers() -> None:
    values = (30.0, float("inf"), 40.0, float("nan"))
    cells = [cell("wanda", "LR", seed=seed, perplexity={"test.txt": value}) for seed, value in enumerate(values)]
    study, (row,) = together(*cells)
    (measure,) = perplexities(study)
    assert row.values(measure.of) == [30.0, 40.0]
    assert measure.shown("{:.2f}".format).written(row) == "35.00 (30.00 to 40.00)"


def test_rows_stand_in_the_papers_order_where_one_seed_was_begun_with_fewer_and_others_come_after() -> None:
    cells = [cell("wanda", "BR"), *(cell(pruner, "LR", seed=1) for pruner in ("magnitude", "wanda"))]
    other = {**cell("wanda", "LR"), "pruner": "alps"}
    newer = {**cell("wanda", "LR"), "rung": "k=3"}
    _, found = together(other, newer, *cells, cell("wanda", "BR", seed=2, status="failed"))
    assert [(row.pruner, row.rung, len(row.cells), row.asked) for row in found] == [
        ("magnitude", "LR", 1, 1),
        ("wanda", "LR", 1, 1),
        ("wanda", "BR", 1, 2),
        ("wanda", "k=3", 1, 1),
        ("alps", "LR", 1, 1),
    ]
