"""The axes of a picture: scales, the numbers along them, names beside points. Knows nothing of what is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

_SIZE = 11.0
"""The font size of names beside points, in pixels."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def scale(
    axes: Any, which: Literal["x", "y"], values: Sequence[float], percent: bool = False, flat: float = 12.0
) -> bool:
    """Set a linear scale from zero, or a logarithmic one if the values need it; return whether it is logarithmic.

    Args:
        axes: the matplotlib axes.
        which: the axis.
        values: all values that are drawn along it.
        percent: values are fractions; show them as percentages.
        flat: if the largest value is more than this many times the smallest, the scale is logarithmic.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axis = getattr(axes, f"{which}axis")
    logarithmic = bool(values) and min(values) > 0 and max(values) > flat * min(values)
    if logarithmic:
        getattr(axes, f"set_{which}scale")("log")
        decades = math.log10(max(values) / min(values))
        steps = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3 else (1.0,)
        axis.set_major_locator(LogLocator(subs=steps, numticks=8))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        if not values or min(values) >= 0:
            getattr(axes, f"set_{which}lim")(0, 1.08 * max(values, default=1.0) or 1.0)
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value, percent)))
    return logarithmic


def limits(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """The start and end of both axes of a square picture, with some room around all values."""
    if not values:
        return 0.0, 1.0
    if logarithmic:
        return min(values) / 1.3, max(values) * 1.3
    return min(0.0, 1.08 * min(values)), 1.08 * max(values) or 1.0


def whole_numbers(axes: Any) -> None:
    """Write only whole numbers along the x axis, as many as there is room for."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1))


def written(value: float, percent: bool = False) -> str:
    """A number along an axis: 0.05, 1,200, 10⁶, 10⁻⁵, or 5 %."""
    if value < 0:
        return f"\N{MINUS SIGN}{written(-value, percent)}"
    if percent:
        return f"{written(100 * value)}\N{NO-BREAK SPACE}%"
    if value >= 1e5 or 0 < value < 1e-4:
        power = math.floor(math.log10(value) + 1e-9)
        digits = f"{value / 10**power:.3g}"
        return f"{'' if digits == '1' else f'{digits}·'}10{str(power).translate(_SUPERSCRIPT)}"
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def write_beside(
    axes: Any,
    names: Sequence[tuple[str, str, tuple[float, float]]],
    lines: Sequence[Sequence[tuple[float, float]]],
) -> None:
    """Write names beside their points, where they cover no other name or point and are nearest to their own point.

    A name without such a place is left out, as it would be read as another point's.

    Args:
        axes: the matplotlib axes, with scales and limits set.
        names: (name, colour, point).
        lines: for each line, the points that are drawn and joined.
    """
    axes.figure.draw_without_rendering()  # computes the layout
    place = axes.transData.transform
    frame = axes.get_window_extent()
    dots = [tuple(place(point)) for line in lines for point in line]
    on_lines = [point for line in lines for point in _along([tuple(place(point)) for point in line])]
    taken: list[_Box] = []

    def free(box: _Box, own: tuple[float, float]) -> bool:
        inside = box[0] >= frame.x0 and box[1] >= frame.y0 and box[2] <= frame.x1 and box[3] <= frame.y1
        near = _distance(own, box) + 1
        return (
            inside
            and not any(_meet(box, other) for other in taken)
            and not any(_distance(dot, box) < near for dot in dots if dot != own)
        )

    for name, color, point in sorted(names, key=lambda named: -len(named[0])):  # long names need the most room
        own = tuple(place(point))
        there = [found for found in _boxes(name, *own) if free(found[0], own)]
        if not there:
            continue
        box, offset, across, up = min(
            there, key=lambda found: sum(_distance(point, found[0]) < 1 for point in on_lines)
        )
        taken.append(box)
        axes.annotate(
            name, point, xytext=offset, textcoords="offset pixels", ha=across, va=up, fontsize=_SIZE, color=color,
            annotation_clip=False,
        ).set_in_layout(False)  # fmt: skip


_Box = tuple[float, float, float, float]


def _boxes(name: str, x: float, y: float) -> Iterator[tuple[_Box, tuple[float, float], str, str]]:
    """The places for a name around a point, the best first: box, offset, and alignment across and up."""
    from matplotlib.textpath import TextPath

    wide, high, near = TextPath((0, 0), name, size=_SIZE).get_extents().width + 3, 13.0, 7.0
    for distance in (near, 1.6 * near):
        for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)):
            dx, dy = right * distance, up * distance
            left = x + dx - {1: 0.0, 0: wide / 2, -1: wide}[right]
            low = y + dy - {1: 0.0, 0: high / 2, -1: high}[up]
            across = {1: "left", 0: "center", -1: "right"}[right]
            yield (left, low, left + wide, low + high), (dx, dy), across, {1: "bottom", 0: "center", -1: "top"}[up]


def _along(line: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Points every few pixels along a line."""
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = max(1, round(math.hypot(x1 - x0, y1 - y0) / 3))
        for step in range(steps + 1):
            yield x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps


def _meet(box: _Box, other: _Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _distance(point: tuple[float, float], box: _Box) -> float:
    """How far a point is from a box; 0 within it."""
    across = max(box[0] - point[0], point[0] - box[2], 0.0)
    up = max(box[1] - point[1], point[1] - box[3], 0.0)
    return math.hypot(across, up)
