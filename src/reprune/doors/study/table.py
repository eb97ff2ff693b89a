"""A study as tables, after those of the paper: what stands in each row and column. Knows no files, no console.

A row is a pruner and a rung; seeds are put together as their mean, with the least and the largest where there are
several. Errors are those of the last block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, final

from reprune.doors.formats import clock, percent, size
from reprune.doors.study.record import CellRecord, StudyRecord
from reprune.planning.axes import ALL, PARTS, RUNGS, pruner_place

NOTHING = "-"
_Value = Callable[[CellRecord], float | None]


@final
@dataclass(frozen=True)
class Column:
    """One number of every row.

    Args:
        heading: with the unit.
        value: of a cell; None where it was not measured.
        show: a number as text.
        dense: the dense model's number, if it has one.
        largest: put seeds together as the largest, not as the mean.
        error: of a single value, its standard error.
    """

    heading: str
    value: _Value
    show: Callable[[Any], str]
    dense: float | None = None
    largest: bool = False
    error: _Value = lambda cell: None
    dense_error: float | None = None

    def of(self, cells: Sequence[CellRecord], spread: bool = True) -> str:
        """What stands in a row of these cells; with `spread`, also from where to where seeds go."""
        values = [value for cell in cells if (value := self.value(cell)) is not None]
        if not values:
            return NOTHING
        whole = self.show(max(values) if self.largest else mean(values))
        if self.largest or not spread:
            return whole
        if len(values) > 1:
            return f"{whole} ({self.show(min(values))} to {self.show(max(values))})"
        return self._with_error(whole, next((error for cell in cells if (error := self.error(cell)) is not None), None))

    def of_dense(self, spread: bool = True) -> str:
        """What stands in the dense model's row."""
        if self.dense is None:
            return NOTHING
        return self._with_error(self.show(self.dense), self.dense_error if spread else None)

    def _with_error(self, whole: str, error: float | None) -> str:
        return whole if error is None else f"{whole} ± {self.show(error)}"


@final
@dataclass(frozen=True)
class Row:
    """The cells that differ in their seed only."""

    pruner: str
    rung: str
    only: str
    self_generate: int
    cells: tuple[CellRecord, ...]  # that are done
    asked: int

    @property
    def family(self) -> str:
        """The pruner, and how many self-generated samples it had: wanda, or wanda+32."""
        return f"{self.pruner}+{self.self_generate}" if self.self_generate else self.pruner


def rows(record: StudyRecord) -> list[Row]:
    """All rows, pruner after pruner, then by part and by number of self-generated samples, each along the ladder."""
    found: dict[tuple[str, str, str, int], list[CellRecord]] = {}
    for cell in record["cells"]:
        found.setdefault((cell["pruner"], cell["rung"], cell["only"], cell["self_generate"]), []).append(cell)
    every = [
        Row(*names, tuple(cell for cell in cells if cell["status"] == "done"), len(cells))
        for names, cells in found.items()
    ]
    return sorted(
        every,
        key=lambda row: (pruner_place(row.pruner), PARTS.index(row.only), row.self_generate, RUNGS.index(row.rung)),
    )


def has_parts(record: StudyRecord) -> bool:
    """Whether some cells prune only the attention or only the rest."""
    return any(cell["only"] != ALL for cell in record["cells"])


def counts(record: StudyRecord) -> list[int]:
    """The numbers of self-generated samples, from the smallest."""
    return sorted({cell["self_generate"] for cell in record["cells"]})


def labels(record: StudyRecord) -> dict[str, Callable[[Row], str]]:
    """The columns that say what a row is, by heading: pruner and rung, and what else differs between rows."""
    found: dict[str, Callable[[Row], str]] = {"pruner": lambda row: row.pruner, "rung": lambda row: row.rung}
    if has_parts(record):
        found["part"] = lambda row: row.only
    if counts(record) != [0]:
        found["self-generated"] = lambda row: str(row.self_generate)
    return found


def error_columns(record: StudyRecord) -> list[Column]:
    """The paper's normalized error, and the relative ones in percent: calibration, held-out, and of each text."""
    return [
        Column("error", lambda cell: cell["calibration_error"], "{:.4g}".format),
        Column("calibration %", lambda cell: cell["relative_calibration_error"], share),
        Column("held-out %", lambda cell: cell["relative_heldout_error"], share),
        *(Column(f"test % {text}", _test_error(text), share) for text in record["dense"]["perplexity"]),
    ]


def quality_columns(record: StudyRecord) -> list[Column]:
    """Perplexity of each text, and the mean zero-shot accuracy in percent."""
    columns = [perplexity_column(record, text) for text in record["dense"]["perplexity"]]
    if (found := record["dense"]["zero_shot"]) is not None:
        columns.append(Column("zero-shot %", lambda cell: cell["zero_shot_mean"], accuracy, found["mean"]))
    return columns


def perplexity_column(record: StudyRecord, text: str) -> Column:
    """Perplexity of one text."""
    dense = float(record["dense"]["perplexity"][text]["perplexity"])
    return Column(f"perplexity {text}", lambda cell: cell["perplexity"].get(text), "{:.2f}".format, dense)


def cost_columns() -> list[Column]:
    """Time and peak memory of pruning and reconstruction."""
    return [
        Column("time", lambda cell: cell["seconds"], clock),
        Column("peak memory", lambda cell: _memory(cell, "host"), size, largest=True),
    ]


def device_column(record: StudyRecord) -> list[Column]:
    """Peak memory of the device, if a device was used."""
    if not any(_memory(cell, "device") for cell in record["cells"]):
        return []
    return [Column("on the device", lambda cell: _memory(cell, "device"), size, largest=True)]


def task_columns(record: StudyRecord) -> list[Column]:
    """Zero-shot accuracy in percent, task by task, with its standard error."""
    found = record["dense"]["zero_shot"]
    if found is None:
        return []
    return [
        Column(
            task,
            _task(task, "accuracy"),
            accuracy,
            dense=score["accuracy"],
            error=_task(task, "standard_error"),
            dense_error=score["standard_error"],
        )
        for task, score in found["tasks"].items()
    ]


def share(value: float) -> str:
    """0.1234 as 12.3, with three digits."""
    return percent(value).removesuffix(" %")


def accuracy(value: float) -> str:
    """0.5549 as 55.49."""
    return f"{100 * value:.2f}"


def _test_error(text: str) -> _Value:
    return lambda cell: cell["test_error"][text]["relative"] if text in cell["test_error"] else None


def _task(task: str, key: str) -> _Value:
    def value(cell: CellRecord) -> float | None:
        score = cell["zero_shot"].get(task)
        return None if score is None else score["accuracy"] if key == "accuracy" else score["standard_error"]

    return value


def _memory(cell: CellRecord, where: str) -> float | None:
    return None if cell["peak_memory_bytes"] is None else cell["peak_memory_bytes"][where]
