"""A study's rows as families, and the measures that they are compared by. Knows nothing of pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from reprune.doors.records import rows as records
from reprune.doors.records.rows import (
    Measure,
    Row,
    accuracies,
    errors,
    known,
    mean_accuracy,
    normalized_errors,
    peak_memory,
    perplexities,
    rows,
)
from reprune.doors.records.run import Value, Window
from reprune.doors.records.study import Cell, Study
from reprune.doors.report.text import duration, memory, number, share, two_places
from reprune.planning.axes import ALL, LADDER, RUNGS, place

PART_NAMES = {"attention": "attention only", "mlp": "feed-forward only", "all": "all"}
"""The parts of each block that may be pruned, with their names in a report."""

TIME = records.TIME.shown(duration)
PEAK = peak_memory(lambda held: held.most).shown(memory)
HOST = peak_memory(lambda held: held.host, largest=False).shown(memory, "peak memory of the process")
DEVICE = peak_memory(lambda held: held.device, largest=False).shown(memory, "peak memory of the device")


@dataclass(frozen=True)
class Family:
    """One pruner's rows at one number of self-generated samples: the ladder, then `auto`, then others."""

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
    """All finished cells of a study."""

    families: tuple[Family, ...]  # of whole blocks
    parts: tuple[Row, ...]  # with only the attention or only the rest pruned
    errors: tuple[Measure, ...]  # relative, of the last block: calibration, held-out, then test errors
    normalized: tuple[Measure, ...]  # the same in the paper's form
    perplexities: tuple[Measure, ...]
    accuracies: tuple[Measure, ...]  # by task
    accuracy: Measure  # the mean

    @property
    def rows(self) -> Iterator[Row]:
        """The rows of all families."""
        return (row for family in self.families for row in family.rows)

    @property
    def rungs(self) -> tuple[str, ...]:
        """The rungs that any family has, in their order."""
        return tuple(sorted({row.rung for row in self.rows}, key=lambda rung: place(RUNGS, rung)))

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All measures that cells are compared by."""
        return (*self.errors, *self.perplexities)

    @property
    def best(self) -> tuple[Measure, Row] | None:
        """The best row and its measure: the first perplexity, else the first test error, else the held-out error.

        If all rows have seeds in common, it is chosen by those, and has only those.
        """
        for measure in (*self.perplexities, *self.errors[2:], self.errors[1]):
            for found in (in_common(tuple(self.rows), measure.of), list(self.rows)):
                there = [(value, at) for at, row in enumerate(found) if known(value := row.mean(measure.of))]
                if there:
                    return measure, found[min(there)[1]]
        return None

    @property
    def several(self) -> bool:
        """Whether any row has several seeds."""
        return any(len(row.cells) > 1 for row in self.rows)

    @property
    def uneven(self) -> bool:
        """Whether some rows have seeds that others lack."""
        return len({frozenset(cell.seed for cell in row.cells) for row in self.rows}) > 1


def bring_together(study: Study) -> Rows:
    """Sort a study's finished cells into rows and families."""
    every = [row for row in rows(study) if row.cells]
    whole = [row for row in every if row.only == ALL]

    def told(measures: Sequence[Measure], write: Callable[[Value], str]) -> tuple[Measure, ...]:
        """The measures, their numbers written by `write`, without texts and tasks that no finished cell has."""
        there = [one for one in measures if not one.text or any(row.values(one.of) for row in every)]
        return tuple(one.shown(write) for one in there)

    return Rows(
        tuple(
            Family(name, tuple(row for row in whole if row.family == name))
            for name in dict.fromkeys(row.family for row in whole)
        ),
        tuple(row for row in every if row.only != ALL),
        told(errors(study), share),
        told(normalized_errors(study), number),
        told(perplexities(study), two_places),
        told(accuracies(study), share),
        mean_accuracy(study).shown(share),
    )


def in_common(rows: Sequence[Row], of: Callable[[Cell], Value]) -> list[Row]:
    """The rows with only the seeds for which all have a value; rows without any value do not narrow them."""
    seeds = [{cell.seed for cell in row.cells if known(of(cell))} for row in rows]
    shared = set.intersection(*filter(None, seeds)) if any(seeds) else set()
    return [replace(row, cells=tuple(cell for cell in row.cells if cell.seed in shared)) for row in rows]


def means(rows: Sequence[Row], of: Callable[[Cell], Value]) -> list[Value]:
    """The means of rows to compare, over the seeds that all have in common; None for a row without any."""
    return [row.mean(of) for row in in_common(rows, of)]


def windows_of(rows: Sequence[Row]) -> list[Window]:
    """All windows of all cells."""
    return [window for row in rows for cell in row.cells for window in cell.windows]
