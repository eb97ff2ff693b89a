"""A study's rows as families, and what they are compared by. Knows nothing of pages."""

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
"""What may be pruned of each block, and what it is called."""

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
    """All that is finished of a study."""

    families: tuple[Family, ...]  # of whole blocks
    parts: tuple[Row, ...]  # of which only the attention or only the rest was pruned
    errors: tuple[Measure, ...]  # relative, of the last block; calibration error first
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
        """All that cells are compared by."""
        return (*self.errors, *self.perplexities)

    @property
    def best(self) -> tuple[Measure, Row] | None:
        """The best row, and by what: the lowest first perplexity, else the lowest first test error, else held-out.

        It has the seeds alone that all rows have, if there are any: these it is chosen by.
        """
        for kind in ("perplexity", "test", "heldout"):
            for measure in self.measures:
                for found in (in_common(tuple(self.rows), measure.of), list(self.rows)):
                    there = [(value, at) for at, row in enumerate(found) if known(value := row.mean(measure.of))]
                    if measure.kind == kind and there:
                        return measure, found[min(there)[1]]
        return None

    @property
    def uneven(self) -> bool:
        """Whether some rows have seeds that others have not."""
        return len({frozenset(cell.seed for cell in row.cells) for row in self.rows}) > 1


def bring_together(study: Study) -> Rows:
    """Sort a study's finished cells into rows and families."""
    every = [row for row in rows(study) if row.cells]
    whole = [row for row in every if row.only == ALL]

    def told(measures: Sequence[Measure], write: Callable[[Value], str]) -> tuple[Measure, ...]:
        """With numbers so written, and of texts and tasks those that a finished cell has."""
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
    """The rows with the seeds alone of which all have a value; one without any value has no say in that."""
    seeds = [{cell.seed for cell in row.cells if known(of(cell))} for row in rows]
    shared = set.intersection(*filter(None, seeds)) if any(seeds) else set()
    return [replace(row, cells=tuple(cell for cell in row.cells if cell.seed in shared)) for row in rows]


def means(rows: Sequence[Row], of: Callable[[Cell], Value]) -> list[Value]:
    """The mean of each row, to be compared: over the seeds that all have. None where there are none."""
    return [row.mean(of) for row in in_common(rows, of)]


def windows_of(rows: Sequence[Row]) -> list[Window]:
    """All windows of all cells."""
    return [window for row in rows for cell in row.cells for window in cell.windows]
