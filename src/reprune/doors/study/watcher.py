"""The events of a study, for those who watch it. Knows nothing of how they are shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from reprune.doors.study.record import CellRecord, StudyRecord
from reprune.engine.watcher import Watcher


class StudyWatcher:
    """Receives the events of a study; this class ignores them, subclasses show them."""

    def started(self, record: StudyRecord, axes: str, cells: int, done: int) -> None:
        """The study begins, or goes on: `cells` are asked for, along these axes, and `done` of them are done."""

    def dense_done(self, record: StudyRecord, seconds: float) -> None:
        """The dense model is measured; `seconds` is the time that this took this process."""

    def cell_started(self, cell: CellRecord, number: int, of: int) -> None:
        """A cell begins, or goes on where it was; on a cluster, it has ended."""

    def pruning(self) -> AbstractContextManager[Watcher]:
        """A watcher for the cell's run, which passes on its notes."""
        return nullcontext(NotesOfRun(self.note))

    def measuring(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Something is measured; the returned function is called with the amount that is done, and with the total."""
        return nullcontext(lambda done, of: None)

    def cell_ended(self, cell: CellRecord, seconds_left: float | None) -> None:
        """A cell is done or has failed (its `status`); the rest will take `seconds_left`, if that can be told."""

    def note(self, text: str) -> None:
        """Something that a reader of the results should know."""


class NotesOfRun(Watcher):
    """Passes on only the notes of a run."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def note(self, text: str) -> None:
        self._show(text)
