"""What self-generated samples change: errors and perplexities against their number, after the paper's Figure 4."""

from __future__ import annotations

from collections.abc import Iterator

from reprune.doors.drawing.figures import by_number
from reprune.doors.records.rows import known, points
from reprune.doors.report.page import Plot, Section, Table
from reprune.doors.report.rows import Rows
from reprune.doors.report.text import NONE
from reprune.doors.report.verdict_selfmade import Lines, selfmade_lines


def selfmade_sections(rows: Rows) -> Iterator[Section]:
    """One section, if cells differ in the number of their self-generated samples."""
    lines = selfmade_lines(rows)
    if lines:
        yield Section(
            "selfmade",
            "By the number of self-generated samples",
            intro=(
                "The dense model wrote these samples itself; they are added to those of the calibration texts. So the "
                "calibration error is of different samples at each number, and so is the held-out error if no held-out "
                "text was given; test error and perplexity can be compared.",
            ),
            plots=list(_plots(rows, lines)),
        )


def _plots(rows: Rows, lines: Lines) -> Iterator[Plot]:
    counts = sorted({count for line in lines.values() for count in line})
    for measure in rows.measures:
        series = points(lines, measure.of)
        if not any(series.values()):
            continue
        title = f"{measure.name[:1].upper()}{measure.name[1:]} by self-generated samples"
        table = [
            [*name, *(measure.written(found[n]) if n in found else NONE for n in counts)]
            for name, found in lines.items()
        ]
        yield Plot(
            by_number(
                series,
                title=title,
                ylabel=measure.name,
                dense=measure.dense,
                percent=measure.kind != "perplexity",
            ),
            "The dotted line is the dense model." if known(measure.dense) else "",
            Table(title, ("pruner", "rung", *(f"{n:,}" for n in counts)), table, labels=2),
        )
