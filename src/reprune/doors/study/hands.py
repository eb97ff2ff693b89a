"""Runs the cells of a study: the interface, and this process, which runs one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import final

from reprune.doors.study.cell import CellTask, Outcome, attempt
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine.shared import Shared


class Hands(ABC):
    """Runs the cells of a study."""

    at_once = 1
    """How many cells are run at a time."""

    @abstractmethod
    def do(self, tasks: Sequence[CellTask]) -> Iterator[tuple[CellTask, Outcome]]:
        """Run cells; yields each one when it has ended, with its record filled in."""


@final
class InTurn(Hands):
    """This process, one cell after another."""

    def __init__(self, folder: Path, save: Callable[[], None], watcher: StudyWatcher) -> None:
        """
        Args:
            folder: for what cells share while a study runs.
            save: saves the records.
            watcher: receives the study's events.
        """
        self._folder = folder
        self._save = save
        self._watcher = watcher

    def do(self, tasks: Sequence[CellTask]) -> Iterator[tuple[CellTask, Outcome]]:
        with Shared(self._folder) as shared:
            for task in tasks:
                self._watcher.cell_started(task.cell, *task.place)
                yield task, attempt(task, shared, self._save, self._watcher)
