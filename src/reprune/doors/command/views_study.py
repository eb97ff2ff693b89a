"""Shows a study to a person: two lines per cell, a bar for the current task, and tables at the end. Decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from reprune.doors.evaluation.protocols import describe
from reprune.doors.formats import clock, console, counted, percent, table, wrapped
from reprune.doors.progress import bar_of, counting, watching
from reprune.doors.records.rows import Measure, rows
from reprune.doors.records.study import Study
from reprune.doors.study.record import CellRecord, StudyRecord
from reprune.doors.study.table import NOTHING, cost_columns, error_columns, labels, quality_columns, task_columns
from reprune.doors.study.watcher import NotesOfRun, StudyWatcher
from reprune.engine.watcher import Watcher
from reprune.math.solver import Epoch
from reprune.planning.schedule import Window


class StudyFailures(StudyWatcher):
    """Shows nothing; keeps which of the cells that are asked for have failed."""

    def __init__(self) -> None:
        self.cells = 0
        self.failed: list[CellRecord] = []

    def started(self, record: StudyRecord, axes: str, cells: int, done: int) -> None:
        self.cells = cells

    def cell_ended(self, cell: CellRecord, seconds_left: float | None) -> None:
        if cell["status"] == "failed":
            self.failed.append(cell)


@final
class StudyLines(StudyFailures):
    """Shows a study as it goes on.

    Args:
        verbose: show also each window of each run.
    """

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self._output = console()
        self._told: set[str] = set()
        self._verbose = verbose
        self._text = ""
        self._zero_shot = False

    def started(self, record: StudyRecord, axes: str, cells: int, done: int) -> None:
        super().started(record, axes, cells, done)
        said = f"; {done} done before" if done else ""
        self._output.print(f"study of {record['model']['name']}: {axes} = {counted(cells, 'cell')}{said}", style="bold")

    def dense_done(self, record: StudyRecord, seconds: float) -> None:
        dense = record["dense"]
        self._text = next(iter(dense["perplexity"]))
        self._zero_shot = dense["zero_shot"] is not None
        others = len(dense["perplexity"]) - 1
        more = f" ({counted(others, 'other text')}: see the tables)" if others else ""
        self._output.print("errors: ||sparse - dense||² / ||dense||² of the last block's outputs")
        self._output.print(f"test error and perplexity: {self._text}{more}")
        measured = dense["perplexity"][self._text]
        self._output.print(f"  {describe(measured)}")
        head = ("calibration", "held-out", "test", "perplexity", *(["zero-shot"] if self._zero_shot else []))
        self._row("", [*head, "time", "left"], style="bold")
        mean = [percent(dense["zero_shot"]["mean"])] if dense["zero_shot"] else []
        self._row("dense", ["", "", "", f"{measured['perplexity']:.2f}", *mean, clock(seconds), ""])

    def cell_started(self, cell: CellRecord, number: int, of: int) -> None:
        part = "" if cell["only"] == "all" else f", {cell['only']} only"
        own = f", {cell['self_generate']} self-generated" if cell["self_generate"] else ""
        self._output.print(f"{number}/{of} {cell['pruner']} {cell['rung']}{part}{own}, seed {cell['seed']}")

    def cell_ended(self, cell: CellRecord, seconds_left: float | None) -> None:
        super().cell_ended(cell, seconds_left)
        if cell["status"] == "failed":
            self._output.print(f"  failed: {cell['error']}", style="red")
            return
        calibration, heldout = cell["relative_calibration_error"], cell["relative_heldout_error"]
        mean = [percent(cell["zero_shot_mean"])] if self._zero_shot else []
        self._row(
            "",
            [
                *(percent(error) for error in (calibration, heldout, cell["test_error"][self._text]["relative"])),
                f"{cell['perplexity'][self._text]:.2f}",
                *mean,
                clock(cell["seconds"] + cell["measuring_seconds"]),
                NOTHING if seconds_left is None else clock(seconds_left),
            ],
        )

    def _row(self, name: str, values: Sequence[str], style: str | None = None) -> None:
        widths = (11, 9, 9, 11, *([10] if self._zero_shot else []), 8, 8)
        row = "".join(f" {value:>{width}}" for value, width in zip(values, widths, strict=True))
        self._output.print(f"{name:<6}{row}", style=style)

    @contextmanager
    def pruning(self) -> Iterator[Watcher]:
        if self._verbose:
            with watching(quiet=False, verbose=False) as watcher:
                yield watcher
        elif not self._output.is_interactive:
            yield NotesOfRun(self.note)
        else:
            with bar_of(self._output) as bar:
                yield _Bar(self.note, bar)

    def measuring(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return counting(what, quiet=False)

    def note(self, text: str) -> None:
        if text not in self._told:  # most cells have the same notes
            self._told.add(text)
            self._output.print(wrapped(f"note: {text.removeprefix('note: ')}"), style="yellow")


@final
class _Bar(NotesOfRun):
    """The notes, and one bar over a run's windows."""

    def __init__(self, show: Callable[[str], None], bar: Progress) -> None:
        super().__init__(show)
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def started(self, windows: int, done: int) -> None:
        self._bar.update(self._task, total=windows, completed=done)

    def phase(self, window: Window | None, what: str) -> None:
        self._bar.update(self._task, description=f"  {what:<14}")

    def epoch(self, window: Window, epoch: Epoch, of: int) -> None:
        self._bar.update(self._task, description=f"  {f'epoch {epoch.number}/{of}':<14}")

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        self._bar.advance(self._task)


def show_study(record: StudyRecord, folder: Path) -> None:
    """Show the tables, and where the rest is."""
    output = console()
    study = Study.model_validate(record)
    tables = [error_columns(study), [*quality_columns(study), *cost_columns(study)]]
    if tasks := task_columns(study):
        tables.append(tasks)
    for columns in tables:
        for part in _fitting(study, columns, output):
            output.print()
            output.print(part)
    output.print("\ntime and peak memory: of pruning and reconstruction")
    if any(row.asked > 1 for row in rows(study)):
        output.print("means over the seeds (memory: the largest); their spread is in study.md")
    output.print(f"tables   {folder / 'study.md'}, {folder / 'study.csv'}, {folder / 'study.json'}")
    if (folder / "figures").exists():
        output.print(f"figures  {folder / 'figures'}")


def _fitting(study: Study, columns: Sequence[Measure], output: Console) -> Iterator[Table]:
    """One table of these columns, or several, so that none is wider than the output."""
    unbounded = output.options.update(max_width=sys.maxsize)
    begun: list[Measure] = []
    for column in columns:
        wider = [*begun, column]
        if begun and output.measure(_table(study, wider), options=unbounded).maximum > output.width:
            yield _table(study, begun)
            wider = [column]
        begun = wider
    yield _table(study, begun)


def _table(study: Study, columns: Sequence[Measure]) -> Table:
    made = table()
    head = labels(study)
    for heading in head:
        made.add_column(heading.replace("-generated", "-\ngenerated"), no_wrap=True)
    for column in columns:
        heading = column.name.replace("% ", "%\n").replace("perplexity ", "perplexity\n")  # a text's name on a new line
        made.add_column(heading, justify="right", overflow="fold")
    made.add_row("dense", *([""] * (len(head) - 1)), *(column.written_dense(spread=False) for column in columns))
    for row in rows(study):
        names = (name(row) for name in head.values())
        made.add_row(*names, *(column.written(row, spread=False) for column in columns))
    return made
