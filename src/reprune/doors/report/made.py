"""How a result was made and how to make it again: the end of every report. Draws nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reprune.doors.formats import counted
from reprune.doors.records.run import Data, Origin, Run
from reprune.doors.records.study import Study
from reprune.doors.report.page import Code, Section, Table
from reprune.doors.report.text import listed
from reprune.engine.names import RECIPE
from reprune.files.yaml_text import write_yaml


def processes_of(run: Run) -> list[tuple[str, str]]:
    """How many processes did a run, if there were several."""
    if run.processes == (1,):
        return []
    said = listed([str(count) for count in run.processes])
    return [("Processes", said if len(run.processes) == 1 else f"{said}: the run went on with another number")]


def run_made(run: Run) -> Section:
    """Recipe, versions, data and commands of a run."""
    recipe = {name: value for name, value in run.recipe.items() if name != "model"}
    again = _command("prune", run.model.again, "--recipe", RECIPE, "--out", "again", processes=run.ranks)
    return Section(
        "made",
        "How it was made",
        intro=(
            "The recipe decides the result: with the same model, data, versions and number of processes, on the same "
            "CPU with the same number of threads, it gives the same weights; on a GPU they may differ by rounding. The "
            "recipe is in the result's folder as recipe.yaml; here, files are named without their folders.",
        ),
        pairs=[
            *_model(run.model),
            ("SHA-256 of all samples", run.data.sha256),
            *_made_with(run.versions, _machines(run.machines, "window" if run.distillation is None else "step")),
            *processes_of(run),
        ],
        tables=_sources([("", run.data)]),
        codes=(
            Code("Make it again", f"{again}\nreprune report again"),
            Code(RECIPE, _yaml({"model": run.model.name, **recipe})),
        ),
    )


def study_made(study: Study) -> Section:
    """Settings, versions, data and commands of a study."""
    command = _command("study", study.model.again, "--recipe", "settings.yaml", *_flags(study), "--out", "again")
    recipes = [f"{cell.folder}/{RECIPE}" for cell in study.cells if cell.status == "done"]  # others may have none yet
    one = [_command("prune", study.model.again, "--recipe", recipe, "--out", "one-cell") for recipe in recipes[:1]]
    return Section(
        "made",
        "How it was made",
        intro=("Each cell's record and recipe are in the study's folder, under cells/.",),
        pairs=[
            *_model(study.model),
            *_protocols(study),
            *_made_with(study.versions, _machines(study.machines, "cell")),
        ],
        tables=_sources([(_samples(key), data) for key, data in study.data.items()]),
        codes=(
            Code("Make it again, with the settings below as settings.yaml", f"{command}\nreprune report again"),
            *(Code("Make one cell's model again", line) for line in one),
            Code("settings.yaml: what all cells have in common", _yaml(study.settings)),
        ),
    )


def _flags(study: Study) -> Iterator[str]:
    """The flags of `reprune study` that give the same cells and measures."""
    axes = {"--pruners": "pruner", "--rungs": "rung", "--only": "only", "--seeds": "seed"}
    for flag, name in {**axes, "--self-generate": "self_generate"}.items():
        values = list(dict.fromkeys(getattr(cell, name) for cell in study.cells))
        if values != ["all"] and (flag, values) != ("--self-generate", [0]):
            yield from (flag, *map(str, values))
    names = {"texts": "--text", "protocol": "--protocol", "seqlen": "--text-seqlen", "windows": "--windows"}
    names |= {name: f"--{name.replace('_', '-')}" for name in ("zero_shot", "zero_shot_data", "zero_shot_limit")}
    for name, flag in names.items():
        given = study.measures.get(name)
        words = [
            str(value) for value in (list(given) if isinstance(given, list | dict) else [given]) if value is not None
        ]
        if words:
            yield from (flag, *words)


def _command(*words: str, processes: int = 1) -> str:
    """A line for a shell; a long one is broken before its flags."""
    start = ["reprune"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes), "-m", "reprune"]
    line = shlex.join([*start, *words])
    if len(line) <= 80:
        return line
    parts: list[list[str]] = [start]
    for word in words:
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    return " \\\n    ".join(map(shlex.join, parts))


def _yaml(content: Mapping[str, Any]) -> str:
    return write_yaml(content, width=100).rstrip("\n")


def _model(model: Origin) -> Iterator[tuple[str, str]]:
    yield "Dense model", model.name
    if model.commit:
        yield "Commit", model.commit
    yield "Fingerprint of its weights", model.fingerprint


def _protocols(study: Study) -> Iterator[tuple[str, str]]:
    for text, found in study.dense.perplexity.items():
        windows = f"{counted(found.windows, 'window')} of {found.seqlen:,} tokens"
        yield f"Perplexity on {text}", f"protocol {found.protocol}, {windows}, SHA-256 {found.text_sha256}"


def _made_with(versions: Mapping[str, str], machine: str) -> Iterator[tuple[str, str]]:
    yield "Versions", _words(versions)
    yield "Machine", machine


def _machines(machines: Sequence[tuple[Mapping[str, Any], int]], what: str) -> str:
    """The machine that did all cells, windows or steps, as `what` calls them, or how many each of several did."""
    (first, _), *others = machines
    if not others:
        return _words(first)
    said = "; ".join(f"{counted(count, what)} on {_words(machine)}" for machine, count in machines)
    return f"{said}: do not compare their times"


def _words(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in content.items())


def _samples(key: str) -> str:
    """A key of a study's `data` in words, as "0" or "0 with 32 self-generated"."""
    seed, plus, count = key.partition("+")
    return f"{seed} with {count} self-generated" if plus else seed


def _sources(drawn: Sequence[tuple[str, Data]]) -> list[Table]:
    """One table of all sources; if there are several sets of samples, the first column names the set."""
    rows = []
    for of, data in drawn:
        for source in data.sources:
            role = "held-out" if source.role == "heldout" else source.role
            said = [source.name, role, str(source.count), source.sha256]
            rows.append([of, *said] if of else said)
    if not rows:
        return []
    named = any(of for of, _ in drawn)
    columns = [*(["seed"] if named else []), "text", "role", "samples", "SHA-256"]
    return [Table("Samples were drawn from these texts", columns, rows, labels=len(columns))]
