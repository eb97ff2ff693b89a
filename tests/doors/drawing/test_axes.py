"""What stands along an axis, and where axes begin and end."""

from __future__ import annotations

import pytest

from reprune.doors.drawing.axes import limits, written


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (0.05, "0.05"),
        (1e-4, "0.0001"),
        (1e-5, "10⁻⁵"),
        (3e-6, "3·10⁻⁶"),
        (12.5, "12.5"),
        (1000.0, "1,000"),
        (12_345.6, "12,346"),
        (99_999.0, "99,999"),
        (100_000.0, "10⁵"),
        (999_999.9999999999, "10⁶"),
        (250_000.0, "2.5·10⁵"),
        (3e12, "3·10¹²"),
        (-0.2, "\N{MINUS SIGN}0.2"),
        (-2e6, "\N{MINUS SIGN}2·10⁶"),
    ],
)
def test_a_number_takes_few_digits_whatever_its_size(value: float, expected: str) -> None:
    assert written(value) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, "0 %"),
        (0.07, "7 %"),
        (0.0005, "0.05 %"),
        (-0.2, "\N{MINUS SIGN}20 %"),
        (123.0, "12,300 %"),
        (1e4, "10⁶ %"),
    ],
)
def test_a_share_is_in_percent_also_where_it_is_large(share: float, expected: str) -> None:
    """As errors of models that a pruner has destroyed."""
    assert written(share, percent=True) == expected.replace(" ", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("values", "logarithmic", "expected"),
    [
        ([], False, (0.0, 1.0)),
        ([], True, (0.0, 1.0)),
        ([2.0, 10.0], False, (0.0, 10.8)),
        ([-1.0, 10.0], False, (-1.08, 10.8)),
        ([0.0], False, (0.0, 1.0)),
        ([0.13, 10.0], True, (0.1, 13.0)),
    ],
)
def test_axes_have_room_for_all_values(values: list[float], logarithmic: bool, expected: tuple[float, float]) -> None:
    assert limits(values, logarithmic) == pytest.approx(expected)
