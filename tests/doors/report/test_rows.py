"""Rows are compared over the seeds that all of them have."""

from __future__ import annotations

from typing import Any

from reprune.doors.records.study import Study
from reprune.doors.report.rows import Rows, bring_together, means
from tests.doors.report.records import cell, study_record


def together(*cells: Any) -> Rows:
    return bring_together(Study.model_validate(study_record(cells)))


def test_a_seed_that_lacks_the_measure_is_common_to_none() -> None:
    cells = [cell("wanda", "LR", seed=seed, perplexity={"test.txt": 60.0 + seed}) for seed in (0, 1)]
    lacking = cell("wanda", "BR", seed=1, perplexity={})
    rows = together(*cells, cell("wanda", "BR", perplexity={"test.txt": 50.0}), lacking)
    (measure,) = rows.perplexities
    assert means(list(rows.rows), measure.of) == [60.0, 50.0]
