"""`reprune study`: the paper's grid on one model, cell after cell, each pruned and measured; it can be gone on with.

Everything that can be refused is refused before the folder is touched. Then the dense model is measured once, and each
cell is run and measured in turn. A cell that fails is put on record and does not end the study.
"""

from __future__ import annotations

import errno
import os
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, final

import torch

from reprune.doors.prepare import nested_flags
from reprune.doors.study.begin import Begun, begin, check_data
from reprune.doors.study.cell import CellRun
from reprune.doors.study.figures import write_figures
from reprune.doors.study.files import write_tables
from reprune.doors.study.grid import PRUNERS, RUNGS, Grid, base_recipe, cell_recipes
from reprune.doors.study.measures import Measures
from reprune.doors.study.record import CellRecord, StudyFolder, StudyRecord, cell_of
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine.shared import Shared
from reprune.errors import RepruneError
from reprune.planning.layers import read_recipe

_FOLDERS = re.compile(r"(?<![\w./-])/(?:[^\s/]+/)+")  # of an absolute path, all but its last part
_SHARED = ".shared"  # what cells have in common, as long as a study runs
_EXPECTED = (RepruneError, OSError, MemoryError, torch.OutOfMemoryError)
"""What may go wrong with a cell without a fault of the program; of anything else the traceback is shown."""


def study(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pruners: Sequence[str] = PRUNERS,
    rungs: Sequence[str] = RUNGS,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    self_generate: Sequence[int] | None = None,
    recipe: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    sparsity: float | str | None = None,
    calibration: str | Sequence[str] | None = None,
    heldout: str | Sequence[str] | None = None,
    samples: int | None = None,
    seqlen: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    trust_remote_code: bool | None = None,
    settings: Sequence[str] = (),
    texts: Sequence[str] = ("wikitext2",),
    protocol: str | None = None,
    text_seqlen: int | None = None,
    windows: int | None = None,
    zero_shot: Sequence[str] = (),
    zero_shot_data: str | os.PathLike[str] | None = None,
    zero_shot_limit: int | None = None,
    keep_models: bool = False,
    watcher: StudyWatcher | None = None,
) -> StudyRecord:
    """Prune and measure a model in every cell of a grid; go on with it where it was begun before.

    Args:
        model: a local folder, a Hub id, or a .gguf file.
        out: the study's folder: new, empty, or that of the same study. Axes may have more values than before (or
            fewer: the other cells stay as they are); all else must be the same.
        pruners, rungs, only, seeds, self_generate: the axes; the last are numbers of calibration samples that the model
            writes itself, beside those of `calibration`. None: the one value that the recipe has, by default "all",
            0 and 0.
        recipe, sparsity, ..., settings: as for `prune`, for all cells.
        texts: SOURCEs that perplexity and test errors are measured on; of a data set, its test split.
        protocol, text_seqlen, windows: as protocol, seqlen and max_windows of `evaluate`.
        zero_shot, zero_shot_data, zero_shot_limit: as tasks, data and limit of `zero_shot`; without tasks there is
            no such measure.
        keep_models: keep each cell's sparse model; otherwise only its record and recipe stay.
        watcher: is told what happens.

    Returns:
        The record, as in `out`/study.json. Cells that failed have the status "failed" and their error; their folders
        keep what was done, and the next time they are tried again from there.

    Raises:
        InputError: something given cannot be used, or differs from what the study was begun with; nothing has been
            written.
    """
    watcher = watcher or StudyWatcher()
    content = recipe if isinstance(recipe, Mapping) else read_recipe(Path(recipe)) if recipe is not None else {}
    flags = nested_flags(
        sparsity=sparsity,
        calibration=calibration,
        heldout=heldout,
        samples=samples,
        seqlen=seqlen,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    base = base_recipe(os.fspath(model), content, flags, settings)
    grid = Grid.of(
        pruners,
        rungs,
        [base.only] if only is None else only,
        [base.seed] if seeds is None else seeds,
        [base.self_generate.samples] if self_generate is None else self_generate,
    )
    measures = Measures(
        tuple(dict.fromkeys(texts)),
        protocol,
        text_seqlen,
        windows,
        tuple(dict.fromkeys(zero_shot)),
        None if zero_shot_data is None else Path(zero_shot_data),
        zero_shot_limit,
    )
    recipes = cell_recipes(grid.cells(), os.fspath(model), content, flags, settings)
    folder = StudyFolder(Path(out))
    folder.check()

    def ready() -> Begun:
        return begin(os.fspath(model), recipes, measures, folder, watcher)

    first = None if folder.path.exists() else ready()  # so that no folder is made for what is refused
    with folder:
        begun = ready() if first is None or folder.exists else first
        _Study(begun, folder, keep_models, watcher).run(str(grid))
    return begun.record


@final
class _Study:
    """What is left of a study."""

    def __init__(self, begun: Begun, folder: StudyFolder, keep_models: bool, watcher: StudyWatcher) -> None:
        self._begun = begun
        self._record = begun.record
        self._folder = folder
        self._keep_models = keep_models
        self._watcher = watcher

    def run(self, axes: str) -> None:
        """Measure the dense model, do all cells that are not done, and write tables and figures."""
        self._save()
        cells = [cell for cell in self._record["cells"] if cell_of(cell) in self._begun.recipes]
        left = [cell for cell in cells if cell["status"] != "done"]
        self._watcher.started(self._record, axes, len(cells), len(cells) - len(left))
        self._measure_dense()
        with Shared(self._folder.path / _SHARED) as shared:
            self._do_all(cells, left, shared)
        write_figures(self._folder.path, self._record, self._watcher.note)
        write_tables(self._folder.path, self._record)

    def _do_all(self, cells: Sequence[CellRecord], left: list[CellRecord], shared: Shared) -> None:
        """Do the cells that are left, one after another."""
        for cell in list(left):
            self._watcher.cell_started(cell, cells.index(cell) + 1, len(cells))
            cell["status"], cell["error"] = "pending", None
            try:
                self._do(cell, shared)
                cell["status"] = "done"
            except Exception as error:  # the other cells may well succeed
                _raise_if_disk_full(error)
                cell["status"], cell["error"] = "failed", _said(error)
                if not isinstance(error, _EXPECTED):
                    traceback.print_exc()
            left.remove(cell)
            self._save()
            write_tables(self._folder.path, self._record)
            self._watcher.cell_ended(cell, seconds_left(self._record, left))

    def _save(self) -> None:
        self._folder.save(self._record)

    def _measure_dense(self) -> None:
        """Take the dense model's measures that are not on record."""
        began = time.monotonic()
        bench, dense, model = self._begun.bench, self._record["dense"], self._begun.model
        for text in self._begun.texts:
            if text.name not in dense["perplexity"]:
                with self._watcher.measuring(f"dense, {text.name}") as progress:
                    dense["perplexity"][text.name] = bench.perplexity(model, text, progress, self._watcher.note)
                self._save()
        if bench.measures.zero_shot and dense["zero_shot"] is None:
            with self._watcher.measuring("dense, zero-shot") as progress:
                dense["zero_shot"] = bench.zero_shot(model, progress, self._watcher.note)
            self._save()
        self._watcher.dense_done(self._record, time.monotonic() - began)

    def _do(self, cell: CellRecord, shared: Shared) -> None:
        """Prune and measure; what comes out is on record."""
        run = CellRun(cell, self._folder.cell(cell), self._begun.bench, shared, self._save, self._watcher)
        check_data(self._record, cell_of(cell).samples, run.prune(self._begun.recipes[cell_of(cell)]))
        run.measure(self._begun.model, self._begun.texts)
        if not self._keep_models:
            run.drop_weights()


def _said(error: Exception) -> str:
    """What went wrong, in one line that names no folder of this machine."""
    if isinstance(error, OSError):
        said = (error.strerror or str(error)) + (f": {error.filename}" if error.filename else "")
    else:
        said = str(error) if isinstance(error, RepruneError) else f"{type(error).__name__}: {error}"
    return " ".join(_FOLDERS.sub("", said).split())


def seconds_left(record: StudyRecord, left: Sequence[CellRecord]) -> float | None:
    """How long the cells that are left will take: as long as those done, of the same rung where there are any."""
    by_rung: dict[str, list[float]] = {}
    for cell in record["cells"]:
        if cell["status"] == "done" and cell["seconds"] is not None:
            by_rung.setdefault(cell["rung"], []).append(cell["seconds"] + cell["measuring_seconds"])
    if not left or not by_rung:
        return None if left else 0.0
    overall = mean(seconds for rung in by_rung.values() for seconds in rung)
    return sum(mean(by_rung[cell["rung"]]) if cell["rung"] in by_rung else overall for cell in left)


def _raise_if_disk_full(error: Exception) -> None:
    """End the study where a disk or a quota is full: no other cell would fare better, and all can go on with room."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    if "No space left on device" in str(error):  # of safetensors, which has no number for it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
