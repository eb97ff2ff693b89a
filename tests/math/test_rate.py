"""A rate is far from the weights by its median over windows: too short as asked for, too long as begun with."""

from __future__ import annotations

import pytest

from reprune.math.rate import unusual_steps


@pytest.mark.parametrize(
    ("asked", "begun", "expected"),
    [
        ([0.01], [0.01], None),
        ([], [], None),
        ([None, None], [None], None),
        ([float("nan")], [float("inf")], None),
        ([0.0025, 0.04], [0.0025, 0.04], None),
        ([0.001, None, 0.002, 0.9], [0.001, 0.002, 0.9], (0.002, "shorter")),
        ([0.05], [0.05], (0.05, "longer")),
        ([0.01], [0.001], None),  # tries of the first step have shortened it: nobody's mistake
        ([0.05], [0.02], None),  # the same: it was too long, and is not
        ([0.001], [0.0001], (0.001, "shorter")),
        ([None], [0.05], (0.05, "longer")),
        ([None], [0.001], None),
    ],
)
def test_a_rate_far_from_the_weights(
    asked: list[float | None], begun: list[float | None], expected: tuple[float, str] | None
) -> None:
    assert unusual_steps(asked, begun) == expected
