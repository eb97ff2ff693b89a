"""The numbers along an axis are readable, and axes begin and end where their values need it."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
from matplotlib.figure import Figure

from reprune.doors.drawing.axes import limits, scale, whole_numbers, write_beside, written


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
    """Such as errors of models that a pruner has destroyed."""
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


def ticks(axis: Any) -> list[str]:
    """The labels along an axis."""
    low, high = sorted(axis.get_view_interval())
    return [axis.get_major_formatter()(place) for place in axis.get_majorticklocs() if low <= place <= high]


@pytest.mark.parametrize(
    ("values", "logarithmic", "expected"),
    [
        ([1.0, 11.0], False, "0 2 4 6 8 10"),
        ([1.0, 20.0], True, "1 2 5 10 20"),
        ([1.0, 300.0], True, "1 3 10 30 100 300"),
        ([1.0, 5000.0], True, "1 10 100 1,000"),
        ([0.0, 50.0], False, "0 10 20 30 40 50"),
        ([-1.0, 50.0], False, "0 10 20 30 40 50"),
        ([], False, "0 0.2 0.4 0.6 0.8 1"),
    ],
)
def test_an_axis_has_the_numbers_that_its_values_need(values: list[float], logarithmic: bool, expected: str) -> None:
    axes = Figure().subplots()
    axes.plot(values)
    assert scale(axes, "y", values) == (axes.get_yscale() == "log") == logarithmic
    assert " ".join(ticks(axes.yaxis)) == expected
    assert logarithmic or (axes.get_ylim()[0] < 0) == (min(values, default=0.0) < 0)


@pytest.mark.parametrize(("count", "expected"), [(1, "0"), (3, "0 1 2"), (80, "0 10 20 30 40 50 60 70")])
def test_only_whole_numbers_stand_below_windows_and_blocks(count: int, expected: str) -> None:
    axes = Figure().subplots()
    axes.plot(range(count))
    axes.set_xlim(-0.2, count - 0.8)
    whole_numbers(axes)
    there = [f"{place:g}" for place in axes.get_xticks() if -0.2 <= place < count]
    assert " ".join(there) == expected


def _away(place: Any, box: Any) -> float:
    """The distance of a place from a box, in pixels."""
    return math.hypot(*(max(low - at, at - high, 0.0) for at, low, high in zip(place, box.min, box.max, strict=True)))


def test_names_stand_within_the_frame_and_not_on_one_another() -> None:
    points = {"left": (0.0, 0.5), "right": (1.0, 0.5), "top": (0.5, 1.0), "low": (0.5, 0.0)}
    points |= {"one": (0.5, 0.3), "two": (0.56, 0.3), "the same": (0.56, 0.3)}
    axes = Figure(dpi=72).subplots()  # as in pictures: a point is a pixel
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    write_beside(axes, [(name, "black", point) for name, point in points.items()], [[*points.values()]])
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == points.keys()
    assert [len(name) for name in boxes] == sorted(map(len, points), reverse=True), "the long ones need most room"
    frame = axes.get_window_extent().padded(1)
    assert all(frame.containsx(x) and frame.containsy(y) for box in boxes.values() for x, y in box.get_points())
    assert not any(boxes[one].overlaps(boxes[other]) for one, other in combinations(boxes, 2))
    for name, box in boxes.items():
        away = {other: _away(axes.transData.transform(point), box) for other, point in points.items()}
        assert min(away.values()) == away[name], f"{name} is nearest to its own"
