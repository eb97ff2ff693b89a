"""The verdict on a study says if one pruner has the lower calibration error but another the better model."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doors.report.records import cell, verdict_on


def test_a_pruner_that_fits_more_closely_than_another_and_is_worse_is_named() -> None:
    wanda = [cell("wanda", rung) for rung in ("LR", "BR+GP")]
    worse = cell("sparsegpt", "BR+GP", perplexity={"test.txt": 99.0})
    told = (
        "Between pruners: sparsegpt ends at a lower calibration error than wanda, but at a higher perplexity on "
        "test.txt, with BR+GP (99.00 against 58.76)."
    )
    text = verdict_on([*wanda, cell("sparsegpt", "LR"), worse])
    assert told in text
    assert "All of this comes from one seed" in text
    alone = [wanda[1], worse]  # nothing else is compared
    assert told in verdict_on(alone)
    assert "one pruner ends at the lower error, another at the better model" in verdict_on(alone)
    assert "All of this comes from one seed" in verdict_on(alone)
    assert "one seed" not in verdict_on([wanda[1], cell("sparsegpt", "BR+GP")])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"self_generate": 8},
        {"relative_calibration_error": 0.9},
        {"perplexity": {}, "test_error": {}},
    ],
)
def test_pruners_are_compared_where_all_else_is_the_same_and_known(changes: dict[str, Any]) -> None:
    measured = {"perplexity": {"test.txt": 99.0}, **changes} if changes else {}
    assert "Between pruners" not in verdict_on([cell("wanda", "BR+GP"), cell("sparsegpt", "BR+GP", **measured)])
