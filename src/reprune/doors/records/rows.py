"""A study's cells as rows, one for cells that differ only in their seed, and the measures that rows are compared by.

Several seeds are shown as their mean, with the least and the largest. Errors are those of the last block. Knows nothing
of pages, tables and pictures, which all show these rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import fmean
from typing import Any, Self, TypeGuard

from reprune.doors.records.run import Memory, Value
from reprune.doors.records.study import Accuracy, Cell, CellBlock, Study, TestError
from reprune.planning.axes import PARTS, PRUNERS, RUNGS, place


def known(value: Value) -> TypeGuard[float]:
    """Whether there is a number that can be drawn or compared."""
    return value is not None and math.isfinite(value)


def mean(values: Iterable[Value]) -> Value:
    """The mean of the known values; None if there are none."""
    there = [value for value in values if known(value)]
    return fmean(there) if there else None


@dataclass(frozen=True)
class Row:
    """The cells that differ only in their seed."""

    family: str  # shared by the rows of a ladder: wanda, or wanda+32 with 32 self-generated samples
    pruner: str
    rung: str
    only: str
    self_generate: int
    cells: tuple[Cell, ...]  # those that are done, by seed
    asked: int  # the number of all

    def values(self, of: Callable[[Cell], Value]) -> list[float]:
        """The known values, one per seed."""
        return [value for cell in self.cells if known(value := of(cell))]

    def mean(self, of: Callable[[Cell], Value]) -> Value:
        """The mean over the seeds; None if no value is known."""
        return mean(map(of, self.cells))

    def by_block(self, of: Callable[[CellBlock], Value]) -> list[Value]:
        """The mean over the seeds for each block."""
        blocks = zip_longest(*(cell.blocks for cell in self.cells))
        return [mean(of(block) for block in of_seeds if block is not None) for of_seeds in blocks]


@dataclass(frozen=True)
class Measure:
    """One number of every row.

    Args:
        name: its name, unless a page has another for it.
        kind: calibration, heldout, test, perplexity, accuracy, time or memory.
        of: a cell's value, or None if it was not measured. For errors, also a block's.
        text: the text or task that it is measured on; empty for the run's own samples, and for all tasks.
        dense: the dense model's value, if it has one.
        better: -1 if the lowest is best, 1 if the highest is, 0 if none is.
        largest: show the largest value of several seeds, not the mean: for memory, there must be room for it.
        error, dense_error: the standard error of a single value.
        write: a value as text; None is a value that was not measured.
    """

    name: str
    kind: str
    of: Callable[[Any], Value]
    text: str = ""
    dense: Value = None
    better: int = -1
    largest: bool = False
    error: Callable[[Cell], Value] = lambda cell: None
    dense_error: Value = None
    write: Callable[[Value], str] = str

    def shown(self, write: Callable[[Value], str], name: str | None = None) -> Self:
        """The same measure, with a page's name and its way to write numbers."""
        return replace(self, write=write, name=self.name if name is None else name)

    def written(self, row: Row, spread: bool = True) -> str:
        """A row's value as text; with `spread`, also the range of its seeds, or the standard error of a single one."""
        values = row.values(self.of)
        if self.largest:
            return self.write(max(values, default=None))
        whole = self.write(mean(values))
        if not spread or not values:
            return whole
        if len(values) > 1:
            return f"{whole} ({self.write(min(values))} to {self.write(max(values))})"
        return self._with_error(whole, next(iter(row.values(self.error)), None))

    def written_dense(self, spread: bool = True) -> str:
        """The dense model's value as text."""
        return self._with_error(self.write(self.dense), self.dense_error if spread else None)

    def _with_error(self, whole: str, error: Value) -> str:
        return f"{whole} ± {self.write(error)}" if known(error) else whole


def rows(study: Study) -> list[Row]:
    """All rows, by pruner, then by part, by number of self-generated samples, and by rung."""
    found: dict[tuple[str, str, str, str, int], list[Cell]] = {}
    for cell in sorted(study.cells, key=lambda cell: cell.seed):
        family = f"{cell.pruner}+{cell.self_generate}" if cell.self_generate else cell.pruner
        found.setdefault((family, cell.pruner, cell.rung, cell.only, cell.self_generate), []).append(cell)
    every = [
        Row(*names, tuple(cell for cell in cells if cell.status == "done"), len(cells))
        for names, cells in found.items()
    ]
    return sorted(every, key=_place)


def _place(row: Row) -> tuple[Any, ...]:
    return place(PRUNERS, row.pruner), place(PARTS, row.only), row.self_generate, place(RUNGS, row.rung)


def by_own_samples(found: Iterable[Row]) -> Mapping[tuple[str, str], Mapping[int, Row]]:
    """By pruner and rung: the rows, all of one part, by their number of self-generated samples, the lowest first."""
    lines: dict[tuple[str, str], dict[int, Row]] = {}
    for row in found:
        lines.setdefault((row.pruner, row.rung), {})[row.self_generate] = row
    return lines


def points(
    lines: Mapping[tuple[str, str], Mapping[int, Row]], of: Callable[[Cell], Value]
) -> dict[str, list[tuple[float, float]]]:
    """The points of these lines: by pruner and rung, (number of samples, value) for each seed that has a value."""
    return {
        f"{pruner} {rung}": [(number, value) for number, row in line.items() for value in row.values(of)]
        for (pruner, rung), line in lines.items()
    }


def errors(study: Study) -> list[Measure]:
    """The relative errors: the calibration error, the held-out error, and the error on each text."""
    return [
        Measure("calibration error", "calibration", lambda one: one.relative_calibration_error),
        Measure("held-out error", "heldout", lambda one: one.relative_heldout_error),
        *_test_errors(study, lambda error: error.relative),
    ]


def normalized_errors(study: Study) -> list[Measure]:
    """The same errors in the paper's form."""
    return [
        Measure("calibration error", "calibration", lambda one: one.calibration_error),
        Measure("held-out error", "heldout", lambda one: one.heldout_error),
        *_test_errors(study, lambda error: error.normalized),
    ]


def perplexities(study: Study) -> list[Measure]:
    """The perplexity on each text."""
    dense = {text: found.perplexity for text, found in study.dense.perplexity.items()}
    return [
        Measure(f"perplexity on {text}", "perplexity", _perplexity(text), text, dense=dense.get(text))
        for text in _texts(study)
    ]


def mean_accuracy(study: Study) -> Measure:
    """The mean zero-shot accuracy, 0 to 1."""
    dense = study.dense.zero_shot.mean
    return Measure("mean zero-shot accuracy", "accuracy", lambda cell: cell.zero_shot_mean, dense=dense, better=1)


def accuracies(study: Study) -> list[Measure]:
    """The accuracy on each zero-shot task, with its standard error."""
    scores = study.dense.zero_shot.tasks
    return [
        Measure(
            task,
            "accuracy",
            _of_task(task, lambda score: score.accuracy),
            task,
            dense=scores.get(task, Accuracy()).accuracy,
            better=1,
            error=_of_task(task, lambda score: score.standard_error),
            dense_error=scores.get(task, Accuracy()).standard_error,
        )
        for task in _names((scores, *(cell.zero_shot for cell in study.cells)))
    ]


TIME = Measure("time", "time", lambda cell: cell.seconds, better=0)
"""The time of pruning and reconstruction, in seconds."""


def peak_memory(where: Callable[[Memory], int], largest: bool = True) -> Measure:
    """The most memory that was held, in bytes: `where` picks the host's or the device's."""

    def of(cell: Cell) -> Value:
        return None if cell.peak_memory_bytes is None else where(cell.peak_memory_bytes)

    return Measure("peak memory", "memory", of, better=0, largest=largest)


def _texts(study: Study) -> list[str]:
    of_cells = (names for cell in study.cells for names in (cell.perplexity, cell.test_error))
    return _names((study.dense.perplexity, *of_cells))


def _names(found: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for names in found for name in names))


def _test_errors(study: Study, form: Callable[[TestError], Value]) -> list[Measure]:
    def of(text: str) -> Callable[[Cell | CellBlock], Value]:
        return lambda one: form(one.test_error[text]) if text in one.test_error else None

    return [Measure(f"test error on {text}", "test", of(text), text) for text in _texts(study)]


def _perplexity(text: str) -> Callable[[Cell], Value]:
    return lambda cell: cell.perplexity.get(text)


def _of_task(task: str, of: Callable[[Accuracy], Value]) -> Callable[[Cell], Value]:
    return lambda cell: of(cell.zero_shot[task]) if task in cell.zero_shot else None
