"""One cell of a study: a run of `prune`, then its measures; each step is on record before the next begins.

A cell goes on where it was: an interrupted run is resumed from its ledger, and what is measured is not measured again.
"""

from __future__ import annotations

import shutil
import time
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
from reprune.engine.result import INDEX, RECIPE, RECORD
from reprune.engine.shared import Shared
from reprune.engine.watcher import Watcher
from reprune.errors import InputError
from reprune.model.wellformed import read_json
from reprune.planning.recipe import Recipe


@final
@dataclass(frozen=True)
class CellRun:
    """What is left of one cell."""

    cell: CellRecord  # is filled in
    folder: Path  # of its run
    bench: Bench
    shared: Shared | None  # what the runs of a study have in common, where they are done in one process
    save: Callable[[], None]  # puts the record on disk
    watcher: StudyWatcher

    def prune(self, recipe: Recipe) -> dict[str, Any]:
        """Do what is left of the run, put its numbers on record, and return its own record, as `prune` does.

        Raises:
            RepruneError, OSError: as `prune` and `resume`.
        """
        whole = (self.folder / INDEX).exists() and (self.folder / RECORD).exists()
        if not (whole or self._is_measured()):
            with self.watcher.pruning() as watcher:
                self._run(recipe, watcher)
            self.cell["blocks"] = []
        shutil.rmtree(Ledger(self.folder).folder, ignore_errors=True)  # of a run killed as it removed it
        record: dict[str, Any] = read_json((self.folder / RECORD).read_text(encoding="utf-8"))
        if not self.cell["blocks"]:
            self._take_down(record)
            self.save()
        return record

    def _is_measured(self) -> bool:
        """Whether all is on record, so that the weights may be gone."""
        measures = self.bench.measures
        return (
            bool(self.cell["blocks"])
            and len(self.cell["perplexity"]) == len(self.cell["test_error"]) == len(measures.texts)
            and bool(self.cell["zero_shot"]) >= bool(measures.zero_shot)
            and (self.folder / RECORD).exists()
        )

    def _run(self, recipe: Recipe, watcher: Watcher) -> None:
        """Begin the run, or go on with it."""
        if Ledger(self.folder).exists:
            try:
                resume_sharing(self.folder, watcher, self.shared, model=recipe.model)
            except InputError as error:
                raise InputError(f"{error} (Remove {self.folder} to begin this cell anew.)") from None
            return
        if self.folder.exists():
            shutil.rmtree(self.folder)  # what a killed process left before its run had begun
        prune_by_recipe(recipe, self.folder, watcher, self.shared)

    def _take_down(self, record: dict[str, Any]) -> None:
        """Put a finished run on record; measures of a run before it are forgotten."""
        blocks = [CellBlock.model_validate(block).model_dump(mode="json") for block in record["blocks"]]
        self.cell.update({key: blocks[-1][key] for key in ERRORS})
        self.cell.update({key: record[key] for key in ("seconds", "peak_memory_bytes", "windows")})
        self.cell.update(blocks=blocks, test_error={}, perplexity={}, zero_shot={}, zero_shot_mean=None)
        self.cell["measuring_seconds"] = 0.0

    def measure(self, model: str, texts: Sequence[Text]) -> None:
        """Take the measures that are not on record.

        Args:
            model: the dense model.
            texts: that are measured on.

        Raises:
            RepruneError, OSError: a measure cannot be taken; those before it are on record.
        """
        cell, bench, note = self.cell, self.bench, self.watcher.note
        for text in texts:
            name = text.name
            if name not in cell["perplexity"]:
                with self._step(f"perplexity, {name}") as progress:
                    cell["perplexity"][name] = bench.perplexity(self.folder, text, progress, note)["perplexity"]
            if name not in cell["test_error"]:
                with self._step(f"test error, {name}") as progress:
                    errors = bench.errors(self.folder, model, text, progress, note)
                    for block, error in zip(cell["blocks"], errors, strict=True):
                        block["test_error"][name] = error
                    cell["test_error"][name] = errors[-1]
        if bench.measures.zero_shot and not cell["zero_shot"]:
            with self._step("zero-shot") as progress:
                found = bench.zero_shot(self.folder, progress, note)
                cell["zero_shot_mean"] = found["mean"]
                scores = {task: Accuracy.model_validate(score) for task, score in found["tasks"].items()}
                cell["zero_shot"] = {task: score.model_dump(mode="json") for task, score in scores.items()}

    @contextmanager
    def _step(self, what: str) -> Iterator[Progress]:
        """One measure: shown, timed and put on record."""
        began = time.monotonic()
        with self.watcher.measuring(what) as progress:
            yield progress
        self.cell["measuring_seconds"] = round(self.cell["measuring_seconds"] + time.monotonic() - began, 3)
        self.save()

    def drop_weights(self) -> None:
        """Remove all of the sparse model but its record and its recipe, which make it again."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (RECORD, RECIPE):
                path.unlink()
