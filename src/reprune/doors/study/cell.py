"""One cell of a study: a run of `prune`, then its measures; each step is recorded before the next begins.

A cell goes on where it was: an interrupted run is resumed from its ledger, and no measure is taken twice.
"""

from __future__ import annotations

import errno
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from reprune.doors.api import prune_by_recipe, resume_sharing
from reprune.doors.records.study import ERRORS, Accuracy, CellBlock
from reprune.doors.study.measures import Bench, Progress, Text
from reprune.doors.study.record import CellRecord
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine.ledger import Ledger
from reprune.engine.names import INDEX, RECIPE, RECORD
from reprune.engine.shared import Shared
from reprune.engine.watcher import Watcher
from reprune.errors import InputError, RepruneError, is_expected
from reprune.files.wellformed import read_json
from reprune.planning.recipe import Recipe

_FOLDERS = re.compile(r"(?<![\w./-])/(?:[^\s/]+/)+")  # of an absolute path, all but its last part


@final
@dataclass(frozen=True)
class CellTask:
    """All that decides a cell."""

    cell: CellRecord
    place: tuple[int, int]  # its number, from 1, and the number of all
    recipe: Recipe
    folder: Path  # of its run
    bench: Bench
    texts: Sequence[Text]
    keep_model: bool


@final
@dataclass(frozen=True)
class Outcome:
    """How a cell has ended; its numbers are in its record."""

    data: dict[str, Any] | None = None  # the record of its samples, once known
    model: str | None = None  # the fingerprint of the dense model, likewise
    error: str | None = None  # in one line
    trace: str | None = None  # of a fault in the program
    disk_full: bool = False  # then no other cell would succeed


def attempt(task: CellTask, shared: Shared | None, save: Callable[[], None], watcher: StudyWatcher) -> Outcome:
    """Prune and measure, and record the results.

    Args:
        task: the cell.
        shared: what the runs of a study share, if they are done in one process.
        save: saves the cell's record.
        watcher: receives the study's events.
    """
    data: dict[str, Any] | None = None
    model: str | None = None
    try:
        run = _CellRun(task, shared, save, watcher)
        record = run.prune()
        data, model = record["data"], record["model"]["fingerprint"]
        run.measure()
        if not task.keep_model:
            run.drop_weights()
    except Exception as error:  # the other cells may well succeed
        if shared is not None:
            shared.statistics.clear()  # a pruner may have failed while changing them
        trace = None if is_expected(error) else traceback.format_exc()
        disk_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return Outcome(data, model, in_a_line(error), trace, disk_full)
    return Outcome(data, model)


@final
@dataclass(frozen=True)
class _CellRun:
    """What is left to do of one cell."""

    task: CellTask
    shared: Shared | None
    save: Callable[[], None]
    watcher: StudyWatcher

    def prune(self) -> dict[str, Any]:
        """Do what is left of the run, copy its numbers to the cell's record, and return its own, as `prune` does."""
        cell, folder = self.task.cell, self.task.folder
        whole = (folder / INDEX).exists() and (folder / RECORD).exists()
        if not (whole or self._is_measured()):
            with self.watcher.pruning() as watcher:
                self._run(watcher)
            cell["blocks"] = []
        shutil.rmtree(Ledger(folder).folder, ignore_errors=True)  # left if the run was killed while removing it
        record: dict[str, Any] = read_json((folder / RECORD).read_text(encoding="utf-8"))
        if not cell["blocks"]:
            self._take_down(record)
            self.save()
        return record

    def _is_measured(self) -> bool:
        """Whether all measures are on record, so that the weights may have been removed."""
        cell, measures = self.task.cell, self.task.bench.measures
        return (
            bool(cell["blocks"])
            and len(cell["perplexity"]) == len(cell["test_error"]) == len(measures.texts)
            and bool(cell["zero_shot"]) >= bool(measures.zero_shot)
            and (self.task.folder / RECORD).exists()
        )

    def _run(self, watcher: Watcher) -> None:
        """Begin the run, or go on with it."""
        recipe, folder = self.task.recipe, self.task.folder
        if Ledger(folder).exists:
            try:
                resume_sharing(folder, watcher, self.shared, given=recipe)
            except InputError as error:
                raise InputError(f"{error} (Remove {folder} to begin this cell anew.)") from None
            return
        if folder.exists():
            shutil.rmtree(folder)  # what a killed process left before its run had begun
        prune_by_recipe(recipe, folder, watcher, self.shared)

    def _take_down(self, record: dict[str, Any]) -> None:
        """Copy a finished run to the cell's record; forget measures of an earlier run."""
        cell = self.task.cell
        blocks = [CellBlock.model_validate(block).model_dump(mode="json") for block in record["blocks"]]
        cell.update({key: blocks[-1][key] for key in ERRORS})
        cell.update({key: record[key] for key in ("seconds", "peak_memory_bytes", "machine", "windows")})
        cell.update(blocks=blocks, test_error={}, perplexity={}, zero_shot={}, zero_shot_mean=None)
        cell["measuring_seconds"] = 0.0

    def measure(self) -> None:
        """Take the measures that are not on record; if one fails, those before it are recorded."""
        cell, folder, bench, note = self.task.cell, self.task.folder, self.task.bench, self.watcher.note
        for text in self.task.texts:
            name = text.name
            if name not in cell["perplexity"]:
                with self._step(f"perplexity, {name}") as progress:
                    cell["perplexity"][name] = bench.perplexity(folder, text, progress, note)["perplexity"]
            if name not in cell["test_error"]:
                with self._step(f"test error, {name}") as progress:
                    errors = bench.errors(folder, self.task.recipe.model, text, progress, note)
                    for block, error in zip(cell["blocks"], errors, strict=True):
                        block["test_error"][name] = error
                    cell["test_error"][name] = errors[-1]
        if bench.measures.zero_shot and not cell["zero_shot"]:
            with self._step("zero-shot") as progress:
                found = bench.zero_shot(folder, progress, note)
                cell["zero_shot_mean"] = found["mean"]
                scores = {task: Accuracy.model_validate(score) for task, score in found["tasks"].items()}
                cell["zero_shot"] = {task: score.model_dump(mode="json") for task, score in scores.items()}

    @contextmanager
    def _step(self, what: str) -> Iterator[Progress]:
        """One measure, which is shown, timed and recorded."""
        began = time.monotonic()
        with self.watcher.measuring(what) as progress:
            yield progress
        cell = self.task.cell
        cell["measuring_seconds"] = round(cell["measuring_seconds"] + time.monotonic() - began, 3)
        self.save()

    def drop_weights(self) -> None:
        """Remove all of the sparse model except its record and its recipe, by which it can be made again."""
        for path in self.task.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (RECORD, RECIPE):
                path.unlink()


def in_a_line(error: Exception) -> str:
    """An error in one line, without folders of this machine."""
    if isinstance(error, OSError):
        text = (error.strerror or str(error)) + (f": {error.filename}" if error.filename else "")
    else:
        text = str(error) if isinstance(error, RepruneError) else f"{type(error).__name__}: {error}"
    return " ".join(_FOLDERS.sub("", text).split())
