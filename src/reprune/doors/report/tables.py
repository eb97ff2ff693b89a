"""The tables of a study's report, after those of the paper. Draws nothing, judges nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from reprune.doors.records.rows import Measure, known
from reprune.doors.records.study import Study
from reprune.doors.report.course import direction
from reprune.doors.report.page import Table
from reprune.doors.report.rows import PART_NAMES, PEAK, TIME, Rows, means
from reprune.doors.report.text import NONE, change

_UP, _DOWN = "\N{UPWARDS ARROW} ", "\N{DOWNWARDS ARROW} "


def results(rows: Rows) -> Table:
    """One row per pruner and rung, the dense model's first: relative errors of the last block, quality and cost."""
    columns = [*rows.errors, *rows.perplexities, *([rows.accuracy] if rows.accuracies else []), TIME, PEAK]
    return _table("Errors of the last block, relative to the dense model's output; quality; cost", rows, columns)


def results_normalized(rows: Rows) -> Table:
    """The same errors in the paper's normalized form."""
    return _table("The same errors, normalized as in the paper", rows, rows.normalized)


def zero_shot(rows: Rows) -> Table:
    """Accuracy by task, with its standard error if there is one seed."""
    tasks = rows.accuracies
    measured = any(known(task.dense) for task in tasks)
    lines = [["dense", "", *(task.written_dense() for task in tasks)]] if measured else []
    lines += [[row.family, row.rung, *(task.written(row) for task in tasks)] for row in rows.rows]
    return Table("Zero-shot accuracy by task", ("pruner", "rung", *(task.name for task in tasks)), lines, labels=2)


def parts(rows: Rows) -> list[Table]:
    """The results of pruning only the attention, only the rest and all of each block, one table per measure."""
    every = [*rows.rows, *rows.parts]
    columns = [name for name in PART_NAMES if any(row.only == name for row in every)]
    names = dict.fromkeys((row.family, row.rung) for row in rows.parts)
    tables = []
    for measure in rows.perplexities or rows.errors[1:2]:
        lines = []
        for family, rung in names:
            found = {row.only: row for row in every if (row.family, row.rung) == (family, rung)}
            cells = [measure.written(found[part]) if part in found else NONE for part in columns]
            lines.append([family, rung, *cells])
        heads = [PART_NAMES[part] for part in columns]
        tables.append(Table(measure.name[:1].upper() + measure.name[1:], ("pruner", "rung", *heads), lines, labels=2))
    return tables


def steps(rows: Rows) -> Table:
    """How each measure changes from rung to rung; rises are highlighted where the calibration error falls."""
    measures = [measure for measure in rows.measures if any(row.values(measure.of) for row in rows.rows)]
    lines: list[list[str]] = []
    rising: set[tuple[int, int]] = set()
    for family in rows.families:
        for lower, upper in pairwise(family.ladder):
            pairs = [means((lower, upper), measure.of) for measure in measures]
            ways = [direction(before, after) for before, after in pairs]
            rose = [place for place, way in enumerate(ways) if way == "rises" and ways[0] == "falls"]
            rising |= {(len(lines), place + 2) for place in rose}
            arrows = [{"rises": _UP, "falls": _DOWN}.get(str(way), "") for way in ways]
            said = [arrow + change(*pair) for arrow, pair in zip(arrows, pairs, strict=True)]
            step = f"{lower.rung} \N{RIGHTWARDS ARROW} {upper.rung}"
            lines.append([family.name, step, *said, "pitfall" if rose else ""])
    columns = ("pruner", "step", *(measure.name for measure in measures), "")
    return Table("Change from rung to rung", columns, lines, labels=2, best=frozenset(rising))


def unfinished(study: Study) -> Table:
    """The cells that failed, with their errors, and those that were not run yet."""
    lines = [
        [cell.name, cell.status, cell.error or NONE]
        for status in ("failed", "pending")
        for cell in study.cells
        if cell.status == status
    ]
    return Table("Cells without a result", ("cell", "status", "error"), lines, labels=3)


def _table(caption: str, rows: Rows, columns: Sequence[Measure]) -> Table:
    shown = [column for column in columns if any(row.values(column.of) for row in rows.rows)]
    lines: list[list[str]] = []
    best: set[tuple[int, int]] = set()
    labels = 3 if rows.several else 2
    if any(known(column.dense) for column in shown):
        lines.append(["dense", *[""] * (labels - 1), *(_dense(column) for column in shown)])
    for family in rows.families:
        first = len(lines)
        for row in family.rows:
            seeds = [str(len(row.cells))] if rows.several else []
            lines.append([family.name, row.rung, *seeds, *(column.written(row) for column in shown)])
        for place, column in enumerate(shown):
            values = enumerate(means(family.rows, column.of), first)
            there = [(column.better * value, at) for at, value in values if known(value)]
            if column.better and len(there) > 1:
                best.add((max(there)[1], place + labels))
    names = ("pruner", "rung", *(["seeds"] if rows.several else []))
    heads = (*names, *(column.name for column in shown))
    return Table(caption, heads, lines, labels=labels, best=frozenset(best))


def _dense(column: Measure) -> str:
    return column.written_dense() if known(column.dense) else ""
