"""Those who do the cells of a study, and what becomes of a cell in their hands. Here: this process, cell after cell."""

from __future__ import annotations

import errno
import re
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from reprune.doors.study.cell import CellRun
from reprune.doors.study.measures import Bench, Text
from reprune.doors.study.record import CellRecord
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine.shared import Shared
from reprune.errors import RepruneError, is_expected
from reprune.planning.recipe import Recipe

_FOLDERS = re.compile(r"(?<![\w./-])/(?:[^\s/]+/)+")  # of an absolute path, all but its last part


@final
@dataclass(frozen=True)
class Outcome:
    """How a cell has ended; its numbers are in its record."""

    data: dict[str, Any] | None = None  # what its samples are, once they are known
    model: str | None = None  # the fingerprint of the dense model, likewise
    error: str | None = None  # in one line
    trace: str | None = None  # of a fault of the program
    disk_full: bool = False  # so that no other cell would fare better


@final
@dataclass(frozen=True)
class CellTask:
    """All that decides a cell."""

    cell: CellRecord
    place: tuple[int, int]  # its number, from 1, of how many
    recipe: Recipe
    folder: Path  # of its run
    bench: Bench
    model: str  # the dense one
    texts: Sequence[Text]
    keep_model: bool


class Hands(ABC):
    """Someone who does cells."""

    at_once = 1
    """How many cells are done at a time."""

    @abstractmethod
    def do(self, tasks: Sequence[CellTask]) -> Iterator[tuple[CellTask, Outcome]]:
        """Do cells, and give each one back when it has ended, with its record filled in."""


def attempt(task: CellTask, shared: Shared | None, save: Callable[[], None], watcher: StudyWatcher) -> Outcome:
    """Prune and measure, and put on record what comes out.

    Args:
        task: the cell.
        shared: what the runs of a study have in common.
        save: puts its record on disk.
        watcher: is told what happens.
    """
    data: dict[str, Any] | None = None
    model: str | None = None
    try:
        run = CellRun(task.cell, task.folder, task.bench, shared, save, watcher)
        record = run.prune(task.recipe)
        data, model = record["data"], record["model"]["fingerprint"]
        run.measure(task.model, task.texts)
        if not task.keep_model:
            run.drop_weights()
    except Exception as error:  # the other cells may well succeed
        if shared is not None:
            shared.statistics.clear()  # a pruner may have failed as it changed them
        trace = None if is_expected(error) else traceback.format_exc()
        return Outcome(data, model, in_a_line(error), trace, _is_disk_full(error))
    return Outcome(data, model)


@final
class InTurn(Hands):
    """This process, one cell after another."""

    def __init__(self, folder: Path, save: Callable[[], None], watcher: StudyWatcher) -> None:
        """
        Args:
            folder: for what cells have in common, as long as a study runs.
            save: puts what is on record on disk.
            watcher: is told what happens.
        """
        self._folder = folder
        self._save = save
        self._watcher = watcher

    def do(self, tasks: Sequence[CellTask]) -> Iterator[tuple[CellTask, Outcome]]:
        with Shared(self._folder) as shared:
            for task in tasks:
                self._watcher.cell_started(task.cell, *task.place)
                yield task, attempt(task, shared, self._save, self._watcher)


def in_a_line(error: Exception) -> str:
    """What went wrong, in one line that names no folder of this machine."""
    if isinstance(error, OSError):
        text = (error.strerror or str(error)) + (f": {error.filename}" if error.filename else "")
    else:
        text = str(error) if isinstance(error, RepruneError) else f"{type(error).__name__}: {error}"
    return " ".join(_FOLDERS.sub("", text).split())


def _is_disk_full(error: Exception) -> bool:
    """Whether a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)  # of safetensors, which has no number for it
