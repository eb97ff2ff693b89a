"""Points, lines and labels of a figure are drawn where their numbers say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from reprune.doors.drawing import figures

Painted = Callable[[Callable[[], str]], Any]


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> Painted:
    """A function that draws a figure and returns its axes with all that is on them."""
    kept: list[Callable[[Any], None]] = []

    def draw(paint: Callable[[Any], None], **_: Any) -> str:
        kept.append(paint)
        return ""

    def axes_of(make: Callable[[], str]) -> Any:
        make()
        axes = Figure().subplots()
        kept[-1](axes)
        return axes

    monkeypatch.setattr(figures, "draw", draw)
    return axes_of


def drawn(axes: Any) -> list[tuple[list[float], list[float]]]:
    """The coordinates of each line and each series of points."""
    return [([*map(float, line.get_xdata())], [*map(float, line.get_ydata())]) for line in axes.lines]


def named(axes: Any) -> list[str]:
    """The texts of the legend, in order."""
    (legend,) = axes.figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_epochs_are_drawn_from_the_start_with_the_one_that_was_kept(painted: Painted) -> None:
    axes = painted(lambda: figures.error_by_epoch([0.3, 0.2, 0.1], [0.4, 0.3, 0.35], kept=1, title="t"))
    assert drawn(axes) == [([0, 1, 2], [0.3, 0.2, 0.1]), ([0, 1, 2], [0.4, 0.3, 0.35]), ([1, 1], [0, 1])]
    assert named(axes) == ["calibration", "held-out", "kept"]
    assert axes.get_ylim() == pytest.approx((0.0, 1.08 * 0.4))


def test_seeds_stand_beside_one_another_on_their_rung_and_a_level_line_at_the_baseline(painted: Painted) -> None:
    series = {"a": [[1.0, 3.0], [2.0], [5.0]], "b": [[2.0], [], [4.0]]}
    axes = painted(lambda: figures.by_rung(series, ["LR", "BR", "auto"], title="t", ylabel="y", joined=2, dense=9.0))
    left, right = -0.06, 0.06
    assert drawn(axes) == [
        ([left, 1 + left], [2.0, 2.0]),
        ([left, left, 1 + left, 2 + left], [1.0, 3.0, 2.0, 5.0]),
        ([right], [2.0]),
        ([right, 2 + right], [2.0, 4.0]),
        ([0, 1], [9.0, 9.0]),
    ]
    assert named(axes) == ["a", "b", "dense"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["LR", "BR", "auto"]
    assert axes.get_ylim() == pytest.approx((0.0, 1.08 * 9.0)), "with room for the baseline"


def test_values_of_many_series_stay_nearer_to_their_rung_than_to_the_next(painted: Painted) -> None:
    """Such as three pruners at four numbers of self-generated samples."""
    series = {str(number): [[1.0], [2.0]] for number in range(12)}
    axes = painted(lambda: figures.by_rung(series, ["LR", "BR"], title="t", ylabel="y", joined=2))
    for places, values in drawn(axes):
        assert [round(place) for place in places] == [value - 1.0 for value in values]
    assert len({place for places, _ in drawn(axes) for place in places}) == 24


def test_numbers_are_joined_from_the_least_to_the_largest(painted: Painted) -> None:
    points = [(32, 2.0), (0, 1.0), (0, 4.0), (512, 3.0)]
    axes = painted(lambda: figures.by_number({"a": points}, title="t", ylabel="y", dense=7.0))
    assert drawn(axes)[0] == ([0, 32, 512], [2.5, 2.0, 3.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "32", "512"]
    assert sorted(zip(*drawn(axes)[1], strict=True)) == sorted(points)
    assert drawn(axes)[2] == ([0, 1], [7.0, 7.0])
    assert named(axes) == ["a", "dense"]


def test_errors_stand_over_those_of_calibration_and_beside_the_line_where_both_are_equal(painted: Painted) -> None:
    points = [("w LR", 0.1, 0.12), ("w BR", 0.04, 0.08), ("w BR", 0.06, 0.1), ("w auto", 0.02, 0.09)]
    axes = painted(lambda: figures.calibration_against(points, title="t", ylabel="test error"))
    ends, ladder, dots = drawn(axes)
    assert ends[0] == ends[1] == pytest.approx([0.02 / 1.3, 0.12 * 1.3])
    assert ladder == ([0.1, 0.05], [0.12, 0.09])
    assert dots == ([0.1, 0.04, 0.06, 0.02], [0.12, 0.08, 0.1, 0.09])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("calibration error", "test error")
    assert axes.get_xlim() == axes.get_ylim() == pytest.approx(ends[0])
    assert axes.xaxis.get_major_formatter()(0.05) == axes.yaxis.get_major_formatter()(0.05) == "5\N{NO-BREAK SPACE}%"


def test_a_window_whose_time_is_not_known_has_no_bar_and_keeps_its_place(painted: Painted) -> None:
    axes = painted(lambda: figures.seconds_by_window([2.0, None, 3.0], title="t"))
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches] == [(0, 2.0), (2, 3.0)]


def test_a_change_is_up_or_down_from_nothing(painted: Painted) -> None:
    axes = painted(lambda: figures.change_by_window({"a": [-0.2, 0.1]}, title="t", ylabel="y"))
    assert drawn(axes) == [([0, 1], [0.0, 0.0]), ([0, 1], [-0.2, 0.1])]
    low, high = axes.get_ylim()
    assert -0.3 < low < -0.2 and 0.1 < high < 0.2


def test_a_share_is_as_strong_as_it_is_large_in_its_matrix_and_block(painted: Painted) -> None:
    rows = {"up": [0.0, 1.0, None], "down": [0.5, -1.0, 2.0]}
    axes = painted(lambda: figures.share_by_matrix(rows, title="t"))
    cells = [
        (round(one.get_x() + one.get_width() / 2), round(one.get_y() + one.get_height() / 2), one.get_alpha())
        for one in axes.patches
    ]
    assert cells == [(0, 0, 0.06), (1, 0, 1.0), (0, 1, pytest.approx(0.53)), (1, 1, 0.06), (2, 1, 1.0)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["up", "down"]
    bottom, top = axes.get_ylim()
    assert bottom > top, "the first is on top"
    assert named(axes) == ["0%", "25%", "50%", "75%", "100%"]
    (legend,) = axes.figure.legends
    assert [patch.get_alpha() for patch in legend.get_patches()] == pytest.approx([0.06, 0.295, 0.53, 0.765, 1.0])


def test_one_series_needs_no_legend_and_two_do(painted: Painted) -> None:
    one = painted(lambda: figures.error_by_block({"a": [1.0, 2.0]}, title="t", ylabel="y"))
    assert one.figure.legends == []
    two = painted(lambda: figures.error_by_block({"a": [1.0, math.inf], "b": [0.5]}, title="t", ylabel="y"))
    assert named(two) == ["a", "b"]
    assert two.get_ylim() == pytest.approx((0.0, 1.08))
