"""`reprune study`: the paper's grid on one model, whose cells are pruned and measured; an interrupted study can go on.

Everything that can be refused is refused before the folder is touched. Then the dense model is measured once, and each
cell is run and measured, here in turn or on a cluster. A cell that fails is recorded and does not end the study.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import mean
from typing import Any, final

import torch

from reprune.doors.found import model_text
from reprune.doors.given import (
    A_PRUNER,
    A_SETTING,
    A_SOURCE,
    Sources,
    listening,
    nested_flags,
    recipe_contents,
    said_trusting,
    several,
    whole_numbers,
)
from reprune.doors.printable import complain
from reprune.doors.study.begin import Begun, begin, check_data
from reprune.doors.study.cell import CellTask, Outcome, in_a_line
from reprune.doors.study.cluster import OnRay
from reprune.doors.study.figures import write_figures
from reprune.doors.study.files import write_tables
from reprune.doors.study.grid import Grid, base_recipe, cell_recipes
from reprune.doors.study.hands import Hands, InTurn
from reprune.doors.study.measures import Measures
from reprune.doors.study.needs import Needs, all_needs
from reprune.doors.study.record import CellRecord, StudyFolder, StudyRecord, cell_of
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine.names import INDEX, RECIPE
from reprune.errors import HalfPrecisionError, InputError, going_on
from reprune.files.local import local_path
from reprune.model.undisturbed import undisturbed
from reprune.planning.axes import PRUNERS, RUNGS
from reprune.planning.idle import idle_notes
from reprune.planning.layers import parse_setting
from reprune.planning.recipe import Recipe

_KEPT = "What is done is kept: the same command goes on from there."
_CPUS_BESIDE_GPU = 4
_SHARED = ".shared"  # what cells share while a study runs


@undisturbed()
def study(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pruners: str | Sequence[str] = PRUNERS,
    rungs: str | Sequence[str] = RUNGS,
    only: str | Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    self_generate: Sequence[int] | None = None,
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None = None,
    sparsity: float | str | None = None,
    calibration: Sources | None = None,
    heldout: Sources | None = None,
    samples: int | None = None,
    seqlen: int | None = None,
    epochs: int | None = None,
    lr: float | str | None = None,
    batch_size: int | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool | None = None,
    settings: str | Sequence[str] = (),
    texts: Sources = ("wikitext2",),
    protocol: str | None = None,
    text_seqlen: int | None = None,
    windows: int | None = None,
    zero_shot: str | Sequence[str] = (),
    zero_shot_data: str | os.PathLike[str] | None = None,
    zero_shot_limit: int | None = None,
    keep_models: bool = False,
    ray: str | None = None,
    ray_cpus: int | None = None,
    watcher: StudyWatcher | None = None,
) -> StudyRecord:
    """Prune and measure a model in every cell of a grid, or go on with a study that was begun before.

    Args:
        model: a local folder, a Hub id, or a .gguf file.
        out: the study's folder: new, empty, or that of the same study. Axes may have more values than before (or
            fewer: the other cells stay as they are); all else must be the same.
        pruners, rungs, only, seeds, self_generate: the axes. The values of `self_generate` are numbers of calibration
            samples that the model writes itself, beside those of `calibration`; without that and without a value of 0,
            cells are calibrated only on these. None: the one value in the recipe, by default "all", 0 and 0.
        recipe, sparsity, ..., settings: as for `prune`, for all cells.
        texts: SOURCEs that perplexity and test errors are measured on; for a data set, its test split is taken.
        protocol, text_seqlen, windows: as protocol, seqlen and max_windows of `evaluate`.
        zero_shot, zero_shot_data, zero_shot_limit: as tasks, data and limit of `zero_shot`; without tasks, accuracy is
            not measured.
        keep_models: keep each cell's sparse model; otherwise only its record and recipe stay.
        ray: the address of a Ray cluster whose workers do the cells; if empty, that in RAY_ADDRESS, or else a new one
            on this machine alone. All nodes must see `out`, the model and the texts by the same paths.
        ray_cpus: a cell's cores there; by default as many as PyTorch uses here, but at most 4 beside a GPU.
        watcher: receives the study's events.

    Returns:
        The record, as in `out`/study.json. Cells that failed have the status "failed" and their error; their folders
        keep what was done, and the next call tries them again from there.

    Raises:
        InputError: something given cannot be used, or differs from what the study was begun with; nothing has been
            written.
        ChangedError: a file of the model was changed meanwhile.
    """
    watcher = listening(watcher, StudyWatcher)
    model = model_text(model)
    content, settings = recipe_contents(recipe), several("settings", settings, A_SETTING)
    flags = nested_flags(
        sparsity=sparsity,
        calibration=calibration,
        heldout=heldout,
        samples=samples,
        seqlen=seqlen,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        include=include,
        exclude=exclude,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    counts = None if self_generate is None else whole_numbers("self_generate", self_generate)
    # A recipe may name no sources if the cells have samples of the model's own.
    own = {} if counts is None else {"self_generate": {"samples": max(counts, default=0)}}
    base = base_recipe(model, content, {**flags, **own}, settings)
    if said := said_trusting(recipe, content, base, trust_remote_code):
        watcher.note(said)
    grid = Grid.of(
        several("pruners", pruners, A_PRUNER),
        several("rungs", rungs),
        [base.only] if only is None else several("only", only),
        [base.seed] if seeds is None else whole_numbers("seeds", seeds),
        [base.self_generate.samples] if counts is None else counts,
    )
    measures = Measures(
        tuple(dict.fromkeys(several("texts", texts, A_SOURCE))),
        protocol,
        text_seqlen,
        windows,
        tuple(dict.fromkeys(several("zero_shot", zero_shot))),
        None if zero_shot_data is None else local_path(zero_shot_data),
        zero_shot_limit,
    )
    recipes = cell_recipes(grid.cells(), model, content, flags, settings)
    for note in idle_notes(recipes.values(), flags, map(parse_setting, settings)):
        watcher.note(note)
    folder = StudyFolder(local_path(out, "out"))
    folder.check()

    if ray_cpus is not None and ray_cpus < 1:
        raise InputError(f"--ray-cpus {ray_cpus}: expected at least 1.")
    if ray_cpus is not None and ray is None:
        raise InputError(f"--ray-cpus {ray_cpus}: has no effect without a Ray cluster; give --ray too.")
    if ray is not None and base.device.partition(":")[2] not in ("", "0"):
        raise InputError(f"--device {base.device}: Ray gives each cell a GPU of its own; give cuda.")
    with ExitStack() as stack:
        cluster = None if ray is None else stack.enter_context(OnRay(ray, folder.apart, watcher))

        def ready(watcher: StudyWatcher) -> Begun:
            begun = begin(model, recipes, measures, folder, watcher)
            if cluster is not None:
                cluster.check(_needs(begun, ray_cpus), grid.pruners)
            return begun

        begun = None if folder.path.exists() else ready(watcher)  # so that a refused study leaves no folder
        stack.enter_context(folder.held())
        if begun is None or folder.exists:
            begun = ready(watcher)
        again = partial(ready, StudyWatcher())  # which tells nothing twice
        return _Study(begun, folder, keep_models, watcher).run(str(grid), cluster, again)


def _needs(begun: Begun, cpus: int | None) -> dict[str, Needs]:
    """What each cell that is not done needs of a cluster's node."""
    if cpus is None:
        on_gpu = next(iter(begun.plans.values())).recipe.device.startswith("cuda")
        cpus = min(torch.get_num_threads(), _CPUS_BESIDE_GPU) if on_gpu else torch.get_num_threads()
    left = {cell_of(cell) for cell in begun.record["cells"] if cell["status"] != "done"}
    return all_needs(begun.plans, {cell.name: begun.recipes[cell] for cell in begun.recipes if cell in left}, cpus)


@final
class _Study:
    """What is left to do of a study."""

    def __init__(self, begun: Begun, folder: StudyFolder, keep_models: bool, watcher: StudyWatcher) -> None:
        self._begun = begun
        self._record = begun.record
        self._folder = folder
        self._keep_models = keep_models
        self._watcher = watcher

    def run(self, axes: str, cluster: Hands | None, again: Callable[[], Begun]) -> StudyRecord:
        """Measure the dense model, have the remaining cells done, and write tables and figures; returns the record.

        `again` begins once more, by the record that is in the folder.
        """
        self._folder.pick_up(self._record)
        self._save()
        shutil.rmtree(self._folder.apart, ignore_errors=True)
        cells = self._cells()
        self._watcher.started(self._record, axes, len(cells), sum(cell["status"] == "done" for cell in cells))
        self._note_gone(cells)
        try:
            self._measure_dense()
        except HalfPrecisionError as error:  # so no cell has begun
            if any(recipe.precision != "auto" for recipe in self._begun.recipes.values()):
                raise
            self._watcher.note(f"{error.reason}; float32 is used instead")
            self._record["settings"]["precision"] = "float32"
            self._record["dense"] = {"perplexity": {}, "zero_shot": None}
            self._save()
            self._begun = again()
            self._record = self._begun.record
            self._measure_dense()
        cells = self._cells()
        left = [(number, cell) for number, cell in enumerate(cells, 1) if cell["status"] != "done"]
        tasks = [self._task(cell, number, len(cells)) for number, cell in left]
        self._have_done(tasks, cluster or InTurn(self._folder.path / _SHARED, self._save, self._watcher))
        shutil.rmtree(self._folder.apart, ignore_errors=True)
        write_figures(self._folder.path, self._record, self._watcher.note)
        write_tables(self._folder.path, self._record)
        return self._record

    def _cells(self) -> list[CellRecord]:
        """The records of the cells that are asked for."""
        return [cell for cell in self._record["cells"] if cell_of(cell) in self._begun.recipes]

    def _note_gone(self, cells: Sequence[CellRecord]) -> None:
        """Note the models that are asked for but were not kept by an earlier call."""
        gone = [cell for cell in cells if cell["status"] == "done" and not (self._folder.cell(cell) / INDEX).exists()]
        if self._keep_models and gone:
            self._watcher.note(
                f"--keep-models: the sparse models of {len(gone)} of {len(cells)} cells were removed when they were "
                f"measured, as the flag was not given; 'reprune prune' makes one again from its recipe.yaml, such as "
                f"{self._folder.cell(gone[0]) / RECIPE}"
            )

    def _task(self, cell: CellRecord, number: int, of: int) -> CellTask:
        cell["status"], cell["error"] = "pending", None
        begun = self._begun
        own = cell_of(cell)
        # On a node of a cluster, `auto` might be something else.
        common = begun.plans[own.only].recipe
        recipe = begun.recipes[own].model_copy(update={"device": common.device, "precision": common.precision})
        folder = self._folder.cell(cell)
        return CellTask(cell, (number, of), recipe, folder, begun.bench, begun.texts, self._keep_models)

    def _have_done(self, tasks: Sequence[CellTask], hands: Hands) -> None:
        """Have cells done; each is recorded when it has ended."""
        left = [task.cell for task in tasks]
        for task, outcome in hands.do(tasks):
            cell = task.cell
            if outcome.disk_full:  # no other cell would succeed; with more room, all can go on
                raise OSError(errno.ENOSPC, outcome.error)
            if outcome.trace is not None:
                complain(outcome.trace)
            cell["error"] = outcome.error or self._wrong_model(cell, outcome) or self._wrong_data(cell, outcome)
            cell["status"] = "done" if cell["error"] is None else "failed"
            left.remove(cell)
            self._save()
            write_tables(self._folder.path, self._record)
            self._watcher.cell_ended(cell, seconds_left(self._record, left, hands.at_once))

    def _wrong_model(self, cell: CellRecord, outcome: Outcome) -> str | None:
        """What is wrong with the model that a cell has pruned, if anything."""
        if outcome.model == self._record["model"]["fingerprint"]:
            return None
        return (
            "the model that was pruned is not the one that this study was begun with, as its files were replaced "
            f"meanwhile; put the originals back, and remove {cell['folder']} to begin this cell anew"
        )

    def _wrong_data(self, cell: CellRecord, outcome: Outcome) -> str | None:
        """What is wrong with a cell's samples, if anything."""
        assert outcome.data is not None
        try:
            check_data(self._record, cell_of(cell).samples, outcome.data)
        except InputError as error:
            return f"{in_a_line(error)} (Remove {cell['folder']} to begin this cell anew.)"
        return None

    def _save(self) -> None:
        with going_on(_KEPT):
            self._begun.check_unchanged()  # nothing about another model may be recorded
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


def seconds_left(record: StudyRecord, left: Sequence[CellRecord], at_once: int = 1) -> float | None:
    """The seconds that the remaining cells will take: as long as those done, of the same rung if there are any."""
    by_rung: dict[str, list[float]] = {}
    for cell in record["cells"]:
        if cell["status"] == "done" and cell["seconds"] is not None:
            by_rung.setdefault(cell["rung"], []).append(cell["seconds"] + cell["measuring_seconds"])
    if not left or not by_rung:
        return None if left else 0.0
    overall = mean(seconds for rung in by_rung.values() for seconds in rung)
    seconds = sum(mean(by_rung[cell["rung"]]) if cell["rung"] in by_rung else overall for cell in left)
    return seconds / min(at_once, len(left))
