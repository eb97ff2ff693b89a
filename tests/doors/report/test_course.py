"""A course along a ladder is described by its turns, each with the rung that it goes up to."""

from __future__ import annotations

import pytest

from reprune.doors.report.course import course

RUNGS = ("LR", "BR", "BR+GP", "BR+GP+CR")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((5.0, 4.0, 3.0, 4.0), "falls up to BR+GP, then rises up to BR+GP+CR"),
        ((5.0, 4.0, 4.5, 5.0), "falls up to BR, then rises up to BR+GP+CR"),
        ((5.0, 4.0, 5.0, 4.0), "falls up to BR, then rises up to BR+GP, then falls up to BR+GP+CR"),
        ((5.0, 5.0, 5.0, 5.0), "stays within 1 % at every step"),
        ((5.0, None, None, 6.0), "rises from LR to BR+GP+CR"),
        ((5.0, float("nan"), float("inf"), None), None),
    ],
)
def test_steps_the_same_way_are_one(values: tuple[float | None, ...], told: str | None) -> None:
    found = course(list(zip(RUNGS, values, strict=True)))
    assert (found and found.replace("\N{NO-BREAK SPACE}", " ")) == told
