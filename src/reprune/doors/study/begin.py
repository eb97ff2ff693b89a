"""Begins a study, or goes on with one; refuses what cannot be used before anything is written. Runs no cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, final

from reprune.doors.generation.selfmade import OWN_TEXTS
from reprune.doors.planned import Plan, plan_by_recipe
from reprune.doors.prepare import check_disk, count_samples, draw
from reprune.doors.study.grid import Cell, common, flat
from reprune.doors.study.measures import Bench, Measures, Text
from reprune.doors.study.record import FORMAT, KIND, StudyFolder, StudyRecord, cell_of, differences, extend, read_study
from reprune.doors.study.watcher import NotesOfRun, StudyWatcher
from reprune.engine.names import RECORD
from reprune.engine.record import machine, versions
from reprune.errors import InputError
from reprune.files.local import local_path
from reprune.files.unchanged import Unchanged
from reprune.math.patterns import parse_pattern
from reprune.model.checkpoint import differing, digests_beside
from reprune.model.decoder import Decoder
from reprune.model.locate import at_commit, by_commit
from reprune.planning.axes import PRUNERS
from reprune.planning.descents import parse_rate
from reprune.planning.paths import on_record
from reprune.planning.pruners import package
from reprune.planning.recipe import Recipe
from reprune.planning.sources import RowFile, TextFile, find_source, parse_source


@final
@dataclass(frozen=True)
class Begun:
    """A study that is ready to run."""

    model: str  # a Hub model with its commit, as in the recipes: all cells prune the same
    recipes: Mapping[Cell, Recipe]  # of the cells that are asked for, in their order
    bench: Bench
    texts: Sequence[Text]
    record: StudyRecord
    plans: Mapping[str, Plan]  # by the part that is pruned
    source: Unchanged  # the file that the model is converted from, if any

    def check_unchanged(self) -> None:
        """Raise `ChangedError` if the model's files have changed since this call began the study or went on with it."""
        self.source.check()
        for plan in self.plans.values():
            plan.decoder.checkpoint.check_unchanged()


def begin(
    model: str, recipes: Mapping[Cell, Recipe], measures: Measures, folder: StudyFolder, watcher: StudyWatcher
) -> Begun:
    """Check all that the study needs, and make its record, or read and extend the one that is there.

    Raises:
        InputError: something cannot be used, or differs from what the study was begun with. Nothing is written.
    """
    measures.check()  # before the model, which may have to be downloaded
    before = read_study(folder.path) if folder.exists else None
    if before is not None:
        recipes = _in_float32(before["settings"], recipes)
    plans = _planned(recipes, watcher)
    plan = next(iter(plans.values()))
    found = _found(model, plan)
    if before is not None and (begun := _as_begun(model, before["model"], found)) != model:
        watcher.note(f"{model} is commit {found['commit']}; the study goes on with {begun}, which it was begun with")
        return begin(begun, _of(begun, recipes), measures, folder, watcher)
    file = local_path(model)
    source = Unchanged([file] if file.is_file() else [])
    bench = Bench(measures, plan.recipe.device, plan.recipe.precision, plan.recipe.trust_remote_code)
    texts = bench.texts(plan.folder)
    tasks = bench.tasks(watcher.note)
    bench = replace(bench, measures=replace(measures, zero_shot=tuple(tasks)))
    for text in texts:
        if _is_calibrated_on(text, plan.recipe):
            watcher.note(f"{text.name} is a calibration text too, so what is measured on it is not on unseen text")
    pruners = sorted({cell.pruner for cell in recipes})
    record: StudyRecord = {
        "kind": KIND,
        "format": FORMAT,
        "model": found,
        "versions": versions(*pruners),
        "packages": {pruner: name for pruner in pruners for name in package(pruner)},
        "machine": machine(plan.recipe.device),
        "settings": _common(plan.recipe, recipes),
        "measures": measures.record(texts, tasks),
        "data": {},
        "dense": {"perplexity": {}, "zero_shot": None},
        "cells": [],
    }
    _check_names(record)
    if before is not None:
        _match_settings_(before, record, recipes)
        _match_spellings_(before["settings"], record["settings"])
        record = _same(before, record, folder, watcher)
    _check_sources(record, recipes, plan.recipe, plan.decoder)
    extend(record, recipes, record["settings"]["sparsity"])
    _check_disk(record, recipes, plans, folder)
    model = at_commit(model, plan.folder)
    return Begun(model, _of(model, recipes), bench, texts, record, plans, source)


def _check_names(record: StudyRecord) -> None:
    """Raise `InputError` if a name that the tables show is not UTF-8, as they are."""
    settings, measures = record["settings"], record["measures"]
    names = *settings["calibration"], *settings["heldout"], *measures["texts"], measures["zero_shot_data"] or ""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{name}: has bytes that are not UTF-8, in which tables are written; rename it.") from None


def _of(model: str, recipes: Mapping[Cell, Recipe]) -> dict[Cell, Recipe]:
    """The recipes, with this name for their model."""
    return {cell: recipe.model_copy(update={"model": model}) for cell, recipe in recipes.items()}


def _in_float32(settings: Mapping[str, Any], recipes: Mapping[Cell, Recipe]) -> dict[Cell, Recipe]:
    """The recipes, with `auto` replaced by float32 if a study was begun in it: the model may run in nothing else."""
    auto = {"precision": "float32"} if settings.get("precision") == "float32" else {}
    return {cell: one.model_copy(update=auto) if one.precision == "auto" else one for cell, one in recipes.items()}


def _planned(recipes: Mapping[Cell, Recipe], watcher: StudyWatcher) -> dict[str, Plan]:
    """A plan for each part that is pruned; checks that the model can be pruned so."""
    plans: dict[str, Plan] = {}
    for cell, recipe in recipes.items():
        if cell.only not in plans:
            plans[cell.only] = plan_by_recipe(recipe, NotesOfRun(watcher.note))
            plans[cell.only].survey.check()
    return plans


def _common(recipe: Recipe, recipes: Mapping[Cell, Recipe]) -> dict[str, Any]:
    """What all cells have in common, with the pruner's settings, which only cells with pruners from packages have."""
    taking = [one.pruner for one in recipes.values() if one.pruner.settings]
    return common(recipe.model_copy(update={"pruner": taking[0]}) if taking else recipe)


def _match_settings_(before: StudyRecord, now: StudyRecord, recipes: Mapping[Cell, Recipe]) -> None:
    """Accept settings for packages' pruners along with the first such pruner, and none if none is asked for."""
    was, is_ = before["settings"]["pruner"], now["settings"]["pruner"]
    if all(cell["pruner"] in PRUNERS for cell in before["cells"]):
        was["settings"] = is_["settings"]
    elif all(cell.pruner in PRUNERS for cell in recipes):
        is_["settings"] = was["settings"]


def _match_spellings_(was: Mapping[str, Any], now: dict[str, Any]) -> None:
    """Write sparsities and rates of settings as they were before where they are the same, such as 0.5 for 50%."""

    def as_before(before: Any, value: Any, parse: Callable[[str], object] = parse_pattern) -> Any:
        with suppress(ValueError):  # one of them is none
            if parse(str(before)) == parse(str(value)):
                return before
        return value

    now["sparsity"] = as_before(was.get("sparsity"), now["sparsity"])
    by_name, rates = was.get("sparsity_by_name", {}), flat(was)
    now["sparsity_by_name"] = {name: as_before(by_name.get(name), one) for name, one in now["sparsity_by_name"].items()}
    for part in ("solver", "distill"):
        now[part]["lr"] = as_before(rates.get(f"{part}.lr"), now[part]["lr"], parse_rate)


def _is_calibrated_on(text: Text, recipe: Recipe) -> bool:
    """Whether a local file is also calibrated on; of a data set, calibration takes other splits."""
    drawn = [find_source(parse_source(source).name) for source in (*recipe.calibration, *recipe.heldout)]
    source = find_source(text.source)
    return isinstance(source, TextFile | RowFile) and source in drawn


def _check_sources(record: StudyRecord, recipes: Mapping[Cell, Recipe], recipe: Recipe, decoder: Decoder) -> None:
    """Draw the samples, to check that this is possible and gives the same as before.

    Self-generated samples are checked when a cell has written them.
    """
    if not recipe.calibration:
        return
    cells = [cell.samples for cell in recipes if not cell.self_generate]
    known = next((samples for samples in (*record["data"], *cells) if "+" not in samples), None)
    seed = recipe.seed if known is None else int(known)
    drawn = draw(recipe.model_copy(update={"seed": seed}), decoder)
    if known is not None:
        check_data(record, known, {"sha256": drawn.sha256, "sources": [vars(source) for source in drawn.sources]})


def _check_disk(
    record: StudyRecord, recipes: Mapping[Cell, Recipe], plans: Mapping[str, Plan], folder: StudyFolder
) -> None:
    """Raise `InputError` if a cell that is still to begin needs more disk than is free."""
    begun = {cell_of(entry) for entry in record["cells"] if folder.cell(entry).exists()}
    needs = {(cell.rung, cell.only, cell.self_generate): cell for cell in recipes if cell not in begun}
    for cell in needs.values():  # whatever its pruner and seed
        plan = plans[cell.only]
        recipe = recipes[cell].model_copy(update={"seqlen": plan.recipe.seqlen})
        check_disk(recipe, plan.decoder, sum(count_samples(recipe)), folder.path)


def _found(model: str, plan: Plan) -> dict[str, Any]:
    """What a study records of its model."""
    return {
        **on_record(model, plan.folder),
        "fingerprint": plan.decoder.checkpoint.fingerprint(),
        "files": digests_beside(plan.folder),
    }


def _as_begun(model: str, begun: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The model with the commit that a study was begun with, if it is the same and its repository has moved on."""
    moved = begun.get("commit") and found.get("commit") not in (None, begun["commit"])
    same_name = begun["name"].partition("@")[0] == model.partition("@")[0]
    if not moved or not same_name or not _is_same_model(begun, found):
        return model
    return by_commit(model, begun["commit"]) or model


def _is_same_model(begun: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether the two are the same model, whatever its name or commit."""
    return bool(begun["fingerprint"] == found["fingerprint"]) and not differing(begun["files"], found["files"])


def _same(before: StudyRecord, now: StudyRecord, folder: StudyFolder, watcher: StudyWatcher) -> StudyRecord:
    """The earlier record; raises `InputError` unless it is of the same study. The model may have another name."""
    changed: list[str] = []
    pinned = by_commit(before["model"]["name"], before["model"].get("commit"))
    begun, given = ({key: said for key, said in one["model"].items() if key != "name"} for one in (before, now))
    if _is_same_model(begun, given):
        begun = given = {}
    _forget_unused_(before, folder)
    packages, brought = before["packages"], now["packages"]
    parts: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (
        ("model ", begun, given),
        ("version of ", now["versions"] | before["versions"], before["versions"] | now["versions"]),
        ("package of pruner ", brought | packages, packages | brought),
        ("", before["settings"], now["settings"]),
        ("order of ", *_in_common(before["settings"].get("sparsity_by_name", {}), now["settings"]["sparsity_by_name"])),
        ("measure ", before["measures"], now["measures"]),
    )
    for what, was, is_ in parts:
        changed += [f"{what}{said}" for said in differences(was, is_)]
    if changed:
        raise InputError(
            f"--out {folder.path}: this study was begun with other settings: {'; '.join(changed)}. Give the same again "
            f"(axes may have more values{', a commit is given as ID@COMMIT' if pinned and begun else ''}), or another "
            "folder."
        )
    if said := differences(before["machine"], now["machine"]):
        watcher.note(f"the study was begun on another machine ({'; '.join(said)}): do not compare times")
    before["versions"] = before["versions"] | now["versions"]  # a new pruner's package may be new, too
    before["packages"] = packages | brought
    return before


def _in_common(was: Mapping[str, str], now: Mapping[str, str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The names that both give a sparsity for, each in its own order: of those that fit a linear, the first decides."""
    begun, given = ([name for name in one if name in other] for one, other in ((was, now), (now, was)))
    return {"sparsity_by_name": begun}, {"sparsity_by_name": given}


def _forget_unused_(record: StudyRecord, folder: StudyFolder) -> None:
    """Remove packages none of whose pruners has pruned a cell, so that other versions or packages may replace them."""
    used = {cell["pruner"] for cell in record["cells"] if cell["blocks"] or (folder.cell(cell) / RECORD).exists()}
    packages = record["packages"]
    record["packages"] = {pruner: name for pruner, name in packages.items() if pruner in used}
    for name in {*packages.values()}.difference(record["packages"].values()):
        record["versions"].pop(name, None)


def check_data(record: StudyRecord, samples: str, data: dict[str, Any]) -> None:
    """Record the data of samples (`Cell.samples`); raise `InputError` if other data are on record."""
    known = record["data"].setdefault(samples, data)
    if known["sha256"] == data["sha256"]:
        return
    pairs = zip(known["sources"], data["sources"], strict=False)
    if {one["name"] for one, other in pairs if one["sha256"] != other["sha256"]} == {OWN_TEXTS}:
        why = "the model has written other texts, as it may on another machine or with another number of threads"
        way = "Set REPRUNE_CACHE to the cache with the first texts"
    else:
        why, way = "a calibration text has changed or was replaced", "Put the original back"
    raise InputError(
        f"the samples of seed {samples} are not those that this study was begun with, though the settings are the "
        f"same: {why}. {way}, or give another folder."
    )
