"""The cells of a study, brought together: one row a pruner and rung, over all seeds. Knows nothing of pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reprune.doors.records.run import Value, Window
from reprune.doors.records.study import Cell, Study
from reprune.doors.report.text import known, mean, share, two_places
from reprune.planning.axes import ALL, LADDER, RUNGS

PARTS = {"attention": "attention only", "mlp": "feed-forward only", "all": "all"}
"""What may be pruned of each block, and what it is called."""


@dataclass(frozen=True)
class Measure:
    """Something that cells are compared by; a lower one is better."""

    name: str
    kind: Literal["calibration", "heldout", "test", "perplexity"]
    text: str  # that it is taken on; empty for the run's own samples
    of: Callable[[Cell], Value]
    written: Callable[[Value], str]


@dataclass(frozen=True)
class Row:
    """The finished cells that differ in nothing but their seed."""

    family: str
    rung: str
    only: str
    cells: tuple[Cell, ...]

    def values(self, of: Callable[[Cell], Value]) -> list[float]:
        """What is known, one value a seed."""
        return [value for cell in self.cells if known(value := of(cell))]

    def mean(self, of: Callable[[Cell], Value]) -> Value:
        """The mean over the seeds; None if nothing is known."""
        return mean(self.values(of))

    def written(self, of: Callable[[Cell], Value], write: Callable[[Value], str]) -> str:
        """The mean, and the range where there are several seeds."""
        values = self.values(of)
        said = write(mean(values))
        if len(values) < 2:
            return said
        return f"{said} ({write(min(values))} to {write(max(values))})"


@dataclass(frozen=True)
class Family:
    """One pruner's rows at one sparsity and number of self-generated samples: the ladder, then `auto`, then others."""

    name: str
    rows: tuple[Row, ...]

    @property
    def ladder(self) -> tuple[Row, ...]:
        """The rows of the paper's rungs."""
        return tuple(row for row in self.rows if row.rung in LADDER)

    def row(self, rung: str) -> Row | None:
        """The row of a rung, if there is one."""
        return next((row for row in self.rows if row.rung == rung), None)


@dataclass(frozen=True)
class Rows:
    """All that is finished of a study."""

    families: tuple[Family, ...]  # of whole blocks
    parts: tuple[Row, ...]  # of which only the attention or only the rest was pruned
    texts: tuple[str, ...]
    tested: tuple[str, ...]  # texts with test errors
    tasks: tuple[str, ...]

    @property
    def rows(self) -> Iterator[Row]:
        """The rows of all families."""
        return (row for family in self.families for row in family.rows)

    @property
    def rungs(self) -> tuple[str, ...]:
        """The rungs that any family has, in their order."""
        return tuple(sorted({row.rung for row in self.rows}, key=_place))

    @property
    def errors(self) -> tuple[Measure, ...]:
        """The relative errors of the last block, calibration error first."""
        return (
            Measure("calibration error", "calibration", "", lambda cell: cell.relative_calibration_error, share),
            Measure("held-out error", "heldout", "", lambda cell: cell.relative_heldout_error, share),
            *(Measure(f"test error on {text}", "test", text, _test(text), share) for text in self.tested),
        )

    @property
    def perplexities(self) -> tuple[Measure, ...]:
        """The perplexities on all texts."""
        return tuple(
            Measure(f"perplexity on {text}", "perplexity", text, _perplexity(text), two_places) for text in self.texts
        )

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All that cells are compared by."""
        return (*self.errors, *self.perplexities)

    @property
    def best(self) -> tuple[Measure, Row] | None:
        """The best row, and by what: the lowest first perplexity, else the lowest first test error, else held-out.

        It has the seeds alone that all rows have, if there are any: these it is chosen by.
        """
        for kind in ("perplexity", "test", "heldout"):
            for measure in self.measures:
                for rows in (in_common(tuple(self.rows), measure.of), list(self.rows)):
                    there = [(value, place) for place, row in enumerate(rows) if known(value := row.mean(measure.of))]
                    if measure.kind == kind and there:
                        return measure, rows[min(there)[1]]
        return None

    @property
    def uneven(self) -> bool:
        """Whether some rows have seeds that others have not."""
        return len({frozenset(cell.seed for cell in row.cells) for row in self.rows}) > 1


def bring_together(study: Study) -> Rows:
    """Sort a study's finished cells into rows and families."""
    done = [cell for cell in study.cells if cell.status == "done"]
    sparsities = {str(cell.sparsity) for cell in study.cells}
    found: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in done:
        family = cell.pruner if len(sparsities) == 1 else f"{cell.pruner}\N{NO-BREAK SPACE}{cell.sparsity}"
        family += f"+{cell.self_generate}" if cell.self_generate else ""
        found.setdefault((family, cell.only, cell.rung), []).append(cell)
    rows = [
        Row(family, rung, only, tuple(sorted(cells, key=lambda cell: cell.seed)))
        for (family, only, rung), cells in found.items()
    ]
    pruners = list(dict.fromkeys(cell.pruner for cell in study.cells))
    rows.sort(key=lambda row: pruners.index(row.cells[0].pruner))
    whole = [row for row in rows if row.only == ALL]
    families = [
        Family(name, tuple(sorted((row for row in whole if row.family == name), key=lambda row: _place(row.rung))))
        for name in dict.fromkeys(row.family for row in whole)
    ]
    return Rows(
        tuple(families),
        tuple(row for row in rows if row.only != ALL),
        _names(cell.perplexity for cell in done),
        _names(cell.test_error for cell in done),
        _names(cell.zero_shot for cell in done),
    )


def in_common(rows: Sequence[Row], of: Callable[[Cell], Value]) -> list[Row]:
    """The rows with the seeds alone of which all have a value; one without any value has no say in that."""
    seeds = [{cell.seed for cell in row.cells if known(of(cell))} for row in rows]
    shared = set.intersection(*filter(None, seeds)) if any(seeds) else set()
    return [replace(row, cells=tuple(cell for cell in row.cells if cell.seed in shared)) for row in rows]


def means(rows: Sequence[Row], of: Callable[[Cell], Value]) -> list[Value]:
    """The mean of each row, to be compared: over the seeds that all have. None where there are none."""
    return [row.mean(of) for row in in_common(rows, of)]


def by_block(row: Row, of: Callable[[int, Cell], Value], blocks: int) -> list[Value]:
    """The mean over a row's seeds for each block: `of(position, cell)`."""
    return [mean([of(place, cell) for cell in row.cells]) for place in range(blocks)]


def accuracy(cell: Cell) -> Value:
    """The mean zero-shot accuracy, 0 to 1."""
    return cell.zero_shot_mean


def windows_of(rows: Sequence[Row]) -> list[Window]:
    """All windows of all cells."""
    return [window for row in rows for cell in row.cells for window in cell.windows or ()]


def _test(text: str) -> Callable[[Cell], Value]:
    return lambda cell: cell.test_error[text].relative if text in cell.test_error else None


def _perplexity(text: str) -> Callable[[Cell], Value]:
    return lambda cell: cell.perplexity.get(text)


def _names(found: Iterator[Mapping[str, object]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in found for name in names))


def _place(rung: str) -> tuple[int, str]:
    return (RUNGS.index(rung) if rung in RUNGS else len(RUNGS), rung)
