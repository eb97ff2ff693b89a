"""What self-generated samples change: errors and perplexities against their number, after the paper's Figure 4."""

from __future__ import annotations

from collections.abc import Iterator

from reprune.doors.drawing.figures import by_number
from reprune.doors.report.page import Plot, Section, Table
from reprune.doors.report.records import Study
from reprune.doors.report.rows import Row, Rows
from reprune.doors.report.text import NONE, known


def selfmade_sections(study: Study, rows: Rows) -> Iterator[Section]:
    """One section, if cells differ in the number of their self-generated samples."""
    counts = sorted({_count(row) for row in rows.rows})
    if len(counts) > 1:
        yield Section(
            "selfmade",
            "By the number of self-generated samples",
            intro=(
                "Samples that the dense model has written itself, beside those of the calibration texts. Each is more "
                "to calibrate on: the calibration error is of other samples at each number, and so is the held-out "
                "error where no held-out text of its own was given; test error and perplexity can be compared.",
            ),
            plots=list(_plots(study, rows, counts)),
        )


def _plots(study: Study, rows: Rows, counts: list[int]) -> Iterator[Plot]:
    dense = study.dense.perplexity if study.dense is not None else {}
    for measure in rows.measures:
        lines: dict[tuple[str, str], dict[int, Row]] = {}
        for row in rows.rows:
            lines.setdefault((row.cells[0].pruner, row.rung), {})[_count(row)] = row
        series = {
            f"{pruner} {rung}": [(n, value) for n, row in found.items() for value in row.values(measure.of)]
            for (pruner, rung), found in lines.items()
        }
        if not any(series.values()):
            continue
        level = dense[measure.text].perplexity if measure.kind == "perplexity" and measure.text in dense else None
        title = f"{measure.name[:1].upper()}{measure.name[1:]} by self-generated samples"
        table = [
            [*name, *(found[n].written(measure.of, measure.written) if n in found else NONE for n in counts)]
            for name, found in lines.items()
        ]
        yield Plot(
            by_number(
                series,
                title=title,
                xlabel="self-generated samples",
                ylabel=measure.name,
                baseline=("dense", level) if known(level) else None,
                percent=measure.kind != "perplexity",
            ),
            "The dotted line is the dense model." if known(level) else "",
            Table(title, ("pruner", "rung", *(f"{n:,}" for n in counts)), table, labels=2),
        )


def _count(row: Row) -> int:
    return row.cells[0].self_generate
