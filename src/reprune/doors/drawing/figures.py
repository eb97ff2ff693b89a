"""The figures of runs and studies, as SVG text. Knows neither records nor pages.

In each, `title` is shown above the picture, and `ylabel` says what the values are; with `percent`, they are fractions
and shown as percentages. Each raises `InputError` if matplotlib is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeGuard

from reprune.doors.drawing.axes import limits, scale, whole_numbers, write_beside
from reprune.doors.drawing.svg import color, draw, legend, plain, short, style
from reprune.planning.axes import AUTO

Number = float | None
"""None and NaN are gaps: not measured."""


def error_by_block(series: Mapping[str, Sequence[Number]], *, title: str, ylabel: str, percent: bool = False) -> str:
    """One line per series over the blocks 0, 1, ...; on a logarithmic axis if the values need one.

    Args:
        series: by name, one value per block; None or NaN if there is none.
    """

    def paint(axes: Any) -> None:
        handles = [_line(axes, number, range(len(values)), values) for number, values in enumerate(series.values())]
        axes.set(xlabel="block", ylabel=short(ylabel, 40))
        whole_numbers(axes)
        scale(axes, "y", [value for values in series.values() for value in _known(values)], percent)
        if len(series) > 1:
            legend(axes, handles, list(series))

    return draw(paint, title=title, height=320)


def calibration_against(
    points: Sequence[tuple[str, Number, Number]],
    *,
    title: str,
    ylabel: str,
) -> str:
    """Calibration error against held-out or test error, in percent, with the diagonal on which both are equal.

    Args:
        points: (label, calibration error, the other error). The label's first word names the series (one colour, one
            entry in the legend). The rest, if any, is written beside the point: "wanda BR+GP" is the point BR+GP of the
            series wanda. The points of such a series are joined in their order, those with the same label (seeds) at
            their mean. Points that lack one of the two numbers are left out.
        ylabel: what the other error is.
    """
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for label, x, y in points:
        if _is(x) and _is(y):
            name, _, rest = plain(label).partition(" ")
            series.setdefault(name, {}).setdefault(rest, []).append((x, y))

    def paint(axes: Any) -> None:
        known = [point for rests in series.values() for near in rests.values() for point in near]
        values = [value for point in known for value in point]
        logarithmic = [scale(axes, which, values, percent=True, flat=3) for which in ("x", "y")]
        ends = limits(values, all(logarithmic))
        axes.plot(ends, ends, color=color("muted"), linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.set(xlim=ends, ylim=ends, xlabel="calibration error", ylabel=short(ylabel, 40))
        handles = []
        for number, rests in enumerate(series.values()):
            near = [point for points in rests.values() for point in points]
            joined = [_mean(points) for rest, points in rests.items() if rest and rest != AUTO]
            handles.append(_dots(axes, number, near, joined))
        if handles:
            legend(axes, handles, list(series))
        named = [
            (short(rest, 20), style(number).color, _mean(near))
            for number, rests in enumerate(series.values())
            for rest, near in rests.items()
            if rest
        ]
        write_beside(axes, named, [[_mean(near) for near in rests.values()] for rests in series.values()])

    return draw(paint, title=title, height=430)


def error_by_epoch(
    calibration: Sequence[Number],
    heldout: Sequence[Number],
    *,
    kept: int,
    title: str,
    ylabel: str = "relative error",
    percent: bool = True,
) -> str:
    """Both errors of one window over its epochs, and the epoch whose weights were kept.

    Args:
        calibration: the errors at the start and after epochs 1, 2, ...
        heldout: the same on held-out text.
        kept: the epoch kept, 0 for the start.
    """

    def paint(axes: Any) -> None:
        handles = [
            _line(axes, number, range(len(values)), values) for number, values in enumerate((calibration, heldout))
        ]
        handles.append(axes.axvline(kept, color=color("ink"), linewidth=1.2, linestyle=(0, (1, 2)), zorder=1))
        axes.set(xlabel="epoch (0 is the start)", ylabel=short(ylabel, 40))
        whole_numbers(axes)
        scale(axes, "y", [*_known(calibration), *_known(heldout)], percent)
        legend(axes, handles, ["calibration", "held-out", "kept"])

    return draw(paint, title=title, height=300)


def by_rung(
    series: Mapping[str, Sequence[Sequence[Number]]],
    rungs: Sequence[str],
    *,
    title: str,
    ylabel: str,
    joined: int,
    dense: Number = None,
    percent: bool = False,
) -> str:
    """The values on each rung, one line per series, one point per seed.

    Args:
        series: by name, for each rung the values of its seeds.
        rungs: the names of the rungs.
        joined: how many rungs, from the first, form a ladder whose means are joined.
        dense: the dense model's value, drawn as a horizontal line.
    """

    def paint(axes: Any) -> None:
        handles, labels = [], list(series)
        apart = min(0.12, 0.72 / max(len(series) - 1, 1))  # so that equal values are, but stay at their own rung
        for number, columns in enumerate(series.values()):
            aside = (number - (len(series) - 1) / 2) * apart
            dots = [(place + aside, value) for place, values in enumerate(columns) for value in _known(values)]
            means = [
                (place + aside, fmean(_known(values)))
                for place, values in enumerate(columns[:joined])
                if _known(values)
            ]
            handles.append(_dots(axes, number, dots, joined=means))
        values = [value for columns in series.values() for seeds in columns for value in _known(seeds)]
        _add_dense_(axes, dense, handles, labels, values)
        axes.set_xticks(range(len(rungs)), [short(rung, 12) for rung in rungs])
        axes.set_xlim(-0.5, len(rungs) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(short(ylabel, 40))
        scale(axes, "y", values, percent)
        legend(axes, handles, labels)

    return draw(paint, title=title, height=340)


def by_number(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    ylabel: str,
    dense: Number = None,
    percent: bool = False,
) -> str:
    """Values by the number of self-generated samples: one line per series through the means, one dot per value.

    Args:
        series: by name, (number, value); a number may occur several times (seeds). Numbers are 0 or more, on an axis
            where each doubling is about the same step.
        dense: the dense model's value, drawn as a horizontal line.
    """

    def paint(axes: Any) -> None:
        handles, labels = [], list(series)
        for number, points in enumerate(series.values()):
            near: dict[float, list[tuple[float, float]]] = {}
            for point in sorted(points):
                near.setdefault(point[0], []).append(point)
            handles.append(_dots(axes, number, points, joined=[_mean(those) for those in near.values()]))
        values = [value for points in series.values() for _, value in points]
        _add_dense_(axes, dense, handles, labels, values)
        numbers = sorted({x for points in series.values() for x, _ in points})
        least = min((x for x in numbers if x > 0), default=1)
        axes.set_xscale("symlog", base=2, linthresh=least)  # linear from 0 to the least, then logarithmic
        axes.set_xticks(numbers, [f"{x:,.0f}" for x in numbers])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="self-generated samples", ylabel=short(ylabel, 40))
        scale(axes, "y", values, percent)
        legend(axes, handles, labels)

    return draw(paint, title=title, height=340)


def seconds_by_window(seconds: Sequence[Number], *, title: str) -> str:
    """The time that each window took, as bars.

    Args:
        seconds: one value per window; None or NaN if there is none.
    """

    def paint(axes: Any) -> None:
        there = [(place, value) for place, value in enumerate(seconds) if _is(value)]
        axes.bar([place for place, _ in there], [value for _, value in there], color=style(0).color, width=0.7)
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="window", ylabel="seconds", xlim=(-0.6, len(seconds) - 0.4))
        whole_numbers(axes)

    return draw(paint, title=title, height=270)


def change_by_window(series: Mapping[str, Sequence[Number]], *, title: str, ylabel: str) -> str:
    """How far each window's values went up or down, on a linear axis with its zero.

    Args:
        series: by name, one change per window as a fraction, -0.2 for a fifth less; None or NaN if there is none.
    """

    def paint(axes: Any) -> None:
        axes.axhline(0, color=color("muted"), linewidth=1)
        handles = [_line(axes, number, range(len(values)), values) for number, values in enumerate(series.values())]
        axes.set(xlabel="window", ylabel=short(ylabel, 40))
        whole_numbers(axes)
        scale(axes, "y", [-1.0, *(value for values in series.values() for value in _known(values))], percent=True)
        axes.set_ylim(auto=True)
        legend(axes, handles, list(series))

    return draw(paint, title=title, height=430)


def share_by_matrix(rows: Mapping[str, Sequence[Number]], *, title: str) -> str:
    """A map of blocks by matrices: the share of a matrix (0 to 1) sets the strength of its cell's colour.

    Args:
        rows: by matrix, one share per block; None or NaN if a block has no such matrix.
    """
    blocks = max((len(shares) for shares in rows.values()), default=0)

    def paint(axes: Any) -> None:
        from matplotlib.patches import Patch, Rectangle

        tint = style(0).color
        for row, shares in enumerate(rows.values()):
            for block, share in enumerate(shares):
                if _is(share):
                    place = (block - 0.46, row - 0.44)
                    alpha = 0.06 + 0.94 * min(max(share, 0.0), 1.0)
                    axes.add_patch(Rectangle(place, 0.92, 0.88, facecolor=tint, alpha=alpha, linewidth=0))
        axes.set(xlim=(-0.6, blocks - 0.4), ylim=(len(rows) - 0.4, -0.6), xlabel="block")
        axes.set_yticks(range(len(rows)), [short(name, 26) for name in rows], fontsize=11)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        whole_numbers(axes)
        steps = (0.0, 0.25, 0.5, 0.75, 1.0)
        patches = [Patch(facecolor=tint, alpha=0.06 + 0.94 * step, linewidth=0) for step in steps]
        legend(axes, patches, [f"{step:.0%}" for step in steps], handlelength=1.2)

    return draw(paint, title=title, height=110 + 22 * max(len(rows), 2))


def _line(axes: Any, number: int, places: Sequence[int], values: Sequence[Number]) -> Any:
    drawn = style(number)
    (handle,) = axes.plot(
        places,
        [value if _is(value) else math.nan for value in values],
        color=drawn.color,
        linestyle=drawn.dash,
        marker=drawn.marker if len(values) <= 40 else "none",
        markeredgecolor=color("surface"),
        markeredgewidth=0.7,
    )
    return handle


def _dots(axes: Any, number: int, points: Sequence[tuple[float, float]], joined: Sequence[tuple[float, float]]) -> Any:
    """Draw points, and a line through those of `joined`; returns the legend's handle for both."""
    from matplotlib.lines import Line2D

    drawn = style(number)
    line: dict[str, Any] = {"color": drawn.color, "linestyle": drawn.dash, "linewidth": 1.4}
    dots: dict[str, Any] = {
        "marker": drawn.marker,
        "markersize": 6.5,
        "markeredgecolor": color("surface"),
        "markeredgewidth": 0.7,
    }
    if joined:
        axes.plot(*zip(*joined, strict=True), **line)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, **dots, color=drawn.color, linestyle="none")
    return Line2D([], [], **dots, **(line if joined else {"color": drawn.color, "linestyle": "none"}))


def _add_dense_(axes: Any, dense: Number, handles: list[Any], labels: list[str], values: list[float]) -> None:
    """Draw the dense model's value, if known, as a horizontal line, and add it to the legend's and the axis's lists."""
    if _is(dense):
        handles.append(axes.axhline(dense, color=color("muted"), linewidth=1.2, linestyle=(0, (2, 3))))
        labels.append("dense")
        values.append(dense)


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return fmean(x for x, _ in points), fmean(y for _, y in points)


def _is(value: Number) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _known(values: Sequence[Number]) -> list[float]:
    return [value for value in values if _is(value)]
