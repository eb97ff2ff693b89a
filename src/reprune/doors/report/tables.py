"""The tables of a study's report, after those of the paper. Draws nothing, judges nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reprune.doors.formats import counted
from reprune.doors.records.run import Value
from reprune.doors.records.study import Accuracy, Cell, Study
from reprune.doors.report.course import direction
from reprune.doors.report.page import Table
from reprune.doors.report.rows import PARTS, Row, Rows, accuracy, means
from reprune.doors.report.text import NONE, change, duration, known, memory, number, share

_UP, _DOWN = "\N{UPWARDS ARROW} ", "\N{DOWNWARDS ARROW} "


@dataclass(frozen=True)
class _Column:
    """One number of every row."""

    heading: str
    of: Callable[[Cell], Value]
    write: Callable[[Value], str]
    better: int = 0  # -1: the lowest is the best, 1: the highest, 0: none is
    dense: Value = None
    largest: bool = False  # of several seeds the largest, as of what there must be room for

    def written(self, row: Row) -> str:
        """What stands in a row."""
        values = row.values(self.of) if self.largest else []
        return self.write(max(values)) if values else row.written(self.of, self.write)


def results(study: Study, rows: Rows) -> Table:
    """One row a pruner and rung, the dense model's first: relative errors of the last block, quality and cost."""
    columns = [_Column(measure.name, measure.of, measure.written, better=-1) for measure in rows.errors]
    for measure in rows.perplexities:
        value = study.dense.perplexity_on(measure.text)
        columns.append(_Column(measure.name, measure.of, measure.written, better=-1, dense=value))
    if rows.tasks:
        value = study.dense.zero_shot.mean
        columns.append(_Column("mean zero-shot accuracy", accuracy, share, better=1, dense=value))
    columns.append(_Column("time", lambda cell: cell.seconds, duration))
    columns.append(_Column("peak memory", _memory, memory, largest=True))
    return _table("Errors of the last block, relative to the dense model's output; quality; cost", rows, columns)


def results_normalized(rows: Rows) -> Table:
    """The same errors in the paper's normalized form."""
    columns = [
        _Column("calibration error", lambda cell: cell.calibration_error, number, better=-1),
        _Column("held-out error", lambda cell: cell.heldout_error, number, better=-1),
        *(_Column(f"test error on {text}", _normalized(text), number, better=-1) for text in rows.tested),
    ]
    return _table("The same errors, normalized as in the paper", rows, columns)


def zero_shot(study: Study, rows: Rows) -> Table:
    """Accuracy by task, with its standard error where there is one seed."""
    scores = study.dense.zero_shot.tasks
    lines = [["dense", "", *(_accuracy(scores.get(task)) for task in rows.tasks)]] if scores else []
    for row in rows.rows:
        cells = []
        for task in rows.tasks:
            found = [score for cell in row.cells if (score := cell.zero_shot.get(task)) is not None]
            cells.append(_accuracy(found[0]) if len(found) == 1 else row.written(_task(task), share))
        lines.append([row.family, row.rung, *cells])
    return Table("Zero-shot accuracy by task", ("pruner", "rung", *rows.tasks), lines, labels=2)


def parts(rows: Rows) -> list[Table]:
    """What pruning the attention alone, the rest alone and all of a block leaves, one table a measure."""
    every = [*rows.rows, *rows.parts]
    columns = [name for name in PARTS if any(row.only == name for row in every)]
    names = dict.fromkeys((row.family, row.rung) for row in rows.parts)
    tables = []
    for measure in rows.perplexities or rows.errors[1:2]:
        lines = []
        for family, rung in names:
            found = {row.only: row for row in every if (row.family, row.rung) == (family, rung)}
            cells = [found[part].written(measure.of, measure.written) if part in found else NONE for part in columns]
            lines.append([family, rung, *cells])
        heads = [PARTS[part] for part in columns]
        tables.append(Table(measure.name.capitalize(), ("pruner", "rung", *heads), lines, labels=2))
    return tables


def steps(rows: Rows) -> Table:
    """How each measure changes from rung to rung; what rises stands out where the calibration error falls."""
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


def _table(caption: str, rows: Rows, columns: Sequence[_Column]) -> Table:
    shown = [column for column in columns if any(row.values(column.of) for row in rows.rows)]
    several = any(len(row.cells) > 1 for row in rows.rows)
    lines: list[list[str]] = []
    best: set[tuple[int, int]] = set()
    labels = 3 if several else 2
    if any(known(column.dense) for column in shown):
        lines.append(["dense", *[""] * (labels - 1), *(_dense(column) for column in shown)])
    for family in rows.families:
        first = len(lines)
        for row in family.rows:
            seeds = [counted(len(row.cells), "seed").split()[0]] if several else []
            lines.append([family.name, row.rung, *seeds, *(column.written(row) for column in shown)])
        for place, column in enumerate(shown):
            values = enumerate(means(family.rows, column.of), first)
            there = [(column.better * value, at) for at, value in values if known(value)]
            if column.better and len(there) > 1:
                best.add((max(there)[1], place + labels))
    names = ("pruner", "rung", *(["seeds"] if several else []))
    heads = (*names, *(column.heading for column in shown))
    return Table(caption, heads, lines, labels=labels, best=frozenset(best))


def _dense(column: _Column) -> str:
    return column.write(column.dense) if known(column.dense) else ""


def _accuracy(score: Accuracy | None) -> str:
    if score is None:
        return NONE
    error = f" ± {share(score.standard_error)}" if known(score.standard_error) else ""
    return share(score.accuracy) + error


def _task(task: str) -> Callable[[Cell], Value]:
    return lambda cell: cell.zero_shot.get(task, Accuracy()).accuracy


def _normalized(text: str) -> Callable[[Cell], Value]:
    return lambda cell: cell.test_error[text].normalized if text in cell.test_error else None


def _memory(cell: Cell) -> Value:
    return cell.peak_memory_bytes.most if cell.peak_memory_bytes is not None else None
