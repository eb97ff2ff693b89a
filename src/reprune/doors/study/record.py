"""A study's folder and what it has on record: study.json, written durably after every step. Runs nothing.

study.json         all numbers of all cells, and what decides them
study.md, .csv     the same as tables, made anew from it
figures/           pictures of them
cells/NAME/        what `reprune prune` left of each cell: reprune.json and recipe.yaml, which make it again
.cells/            on a cluster: what cells in hand have on record
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, TypedDict, cast, final

from reprune.doors.prepare import check_out
from reprune.doors.study.grid import Cell, flat
from reprune.errors import InputError
from reprune.model.durable import unfinished, write_text
from reprune.model.lock import locked
from reprune.model.wellformed import read_json

FILE = "study.json"
KIND, FORMAT = "reprune study", 1


class BlockErrors(TypedDict):
    """Errors of one block against the dense model's, on one text: the paper's form, and that over its power."""

    normalized: float
    relative: float


class CellBlock(TypedDict):
    """One block of a cell's sparse model."""

    index: int
    sparsity: float
    calibration_error: float
    heldout_error: float
    relative_calibration_error: float
    relative_heldout_error: float
    test_error: dict[str, BlockErrors]


class TaskRecord(TypedDict):
    """Accuracy on one zero-shot task."""

    accuracy: float
    standard_error: float | None  # None of a single example
    examples: int


class CellRecord(TypedDict):
    """One cell. Numbers are None, and mappings by text or task lack keys, until they are measured."""

    name: str
    pruner: str
    sparsity: str
    rung: str
    only: str
    seed: int
    self_generate: int  # samples that the model has written itself, beside the others
    status: Literal["pending", "done", "failed"]
    error: str | None
    folder: str  # within the study's folder
    calibration_error: float | None  # this and the next four: of the last block
    heldout_error: float | None
    relative_calibration_error: float | None
    relative_heldout_error: float | None
    test_error: dict[str, BlockErrors]
    perplexity: dict[str, float]
    zero_shot: dict[str, TaskRecord]
    zero_shot_mean: float | None
    seconds: float | None  # of pruning and reconstruction
    measuring_seconds: float
    peak_memory_bytes: dict[str, int] | None
    blocks: list[CellBlock]
    windows: list[dict[str, Any]]


class DenseRecord(TypedDict):
    """The dense model's own measures."""

    perplexity: dict[str, dict[str, Any]]  # by text, with all that decides it
    zero_shot: dict[str, Any] | None


class StudyRecord(TypedDict):
    """The whole of study.json."""

    kind: str
    format: int
    model: dict[str, Any]  # its name, its fingerprint, SHA-256 of files beside its weights, and of a Hub's its commit
    versions: dict[str, str]
    packages: NotRequired[dict[str, str]]  # by pruner: the one that brings it; older records lack them
    machine: dict[str, Any]
    settings: dict[str, Any]  # the recipe's keys that are common to all cells
    measures: dict[str, Any]  # what is measured, and how
    data: dict[str, dict[str, Any]]  # by `Cell.samples`: the calibration and held-out samples, and their sources
    dense: DenseRecord
    cells: list[CellRecord]


def new_cell(cell: Cell, sparsity: str) -> CellRecord:
    """A cell of which nothing is done."""
    return {
        "name": cell.name,
        "pruner": cell.pruner,
        "sparsity": sparsity,
        "rung": cell.rung,
        "only": cell.only,
        "seed": cell.seed,
        "self_generate": cell.self_generate,
        "status": "pending",
        "error": None,
        "folder": _folder_of(cell.name),
        "calibration_error": None,
        "heldout_error": None,
        "relative_calibration_error": None,
        "relative_heldout_error": None,
        "test_error": {},
        "perplexity": {},
        "zero_shot": {},
        "zero_shot_mean": None,
        "seconds": None,
        "measuring_seconds": 0.0,
        "peak_memory_bytes": None,
        "blocks": [],
        "windows": [],
    }


def _folder_of(name: str) -> str:
    """Where a cell of this name is, within the study's folder: what stands in its place is removed."""
    return f"cells/{name}"


def cell_of(record: CellRecord) -> Cell:
    """Where in the grid a cell stands."""
    return Cell(record["pruner"], record["rung"], record["only"], record["seed"], record["self_generate"])


def read_study(folder: Path) -> StudyRecord:
    """The record of a study; raises `InputError` where there is none, or one that cannot be read."""
    path = folder / FILE
    try:
        record = read_json(path.read_text(encoding="utf-8"))
        if record["kind"] != KIND:
            raise ValueError(f"its kind is {record['kind']!r}")
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, this version of reprune reads {FORMAT}")
        if missing := StudyRecord.__required_keys__ - set(record):
            raise ValueError(f"{min(missing)} is missing")
        for cell in record["cells"]:
            if missing := CellRecord.__required_keys__ - set(cell):
                raise ValueError(f"{min(missing)} is missing in a cell")
            if not cell["name"] == cell_of(cell).name == Path(cell["name"]).name:
                raise ValueError(f"{cell['name']!r} is no name of that cell")
            if cell["folder"] != _folder_of(cell["name"]):
                raise ValueError(f"a cell's folder is {cell['folder']!r}, not {_folder_of(cell['name'])}")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: holds no study of reprune ({FILE}).") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a study ({' '.join(str(error).split()):.100}).") from None
    return cast(StudyRecord, record)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two nested mappings, in words: `solver.epochs 2, now 3`.

    An empty list is as no key, as older records lack those that were added since.
    """
    was, is_ = ({key: value for key, value in flat(one).items() if value != []} for one in (before, now))
    return [
        f"{key} {_said(was.get(key))}, now {_said(is_.get(key))}"
        for key in dict.fromkeys([*was, *is_])
        if was.get(key) != is_.get(key)
    ]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    said = "none" if value is None else str(value)
    return said[:12] if len(said) == 64 else said  # a SHA-256


@final
class StudyFolder:
    """The folder of one study. Use it as a context: a second process cannot enter the same one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = ExitStack()

    @property
    def exists(self) -> bool:
        return (self.path / FILE).exists()

    def check(self) -> None:
        """Raise `InputError` unless a study can be begun here, or gone on with.

        What a process left that was killed before its study began is no hindrance.
        """
        cells = self.path / "cells"
        for folder in (cells, *cells.glob("*")):
            if folder.is_symlink():  # what it leads to would be removed
                raise InputError(
                    f"--out {self.path}: {folder} is a link to {folder.readlink()}; put a folder in its place."
                )
        left = [unfinished(self.path / FILE)]
        if not self.exists and not (self.path.is_dir() and list(self.path.iterdir()) == left):
            check_out(self.path)

    def __enter__(self) -> Self:
        """Make the folder and lock it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(locked(self.path, self.path, "study"))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def cell(self, record: CellRecord) -> Path:
        """Where a cell's run is."""
        return self.path / _folder_of(record["name"])

    @property
    def apart(self) -> Path:
        """The folder for what cells that are done elsewhere have on record until study.json has it."""
        return self.path / ".cells"

    def pick_up(self, record: StudyRecord) -> None:
        """Take over what such cells have on record."""
        for cell in record["cells"]:
            if (found := read_apart(self.apart, cell["name"])) is not None:
                cell.update(found)

    def save(self, record: StudyRecord) -> None:
        """Write study.json; before or after, nothing between."""
        write_text(self.path / FILE, json.dumps(record, indent=1) + "\n")


def read_apart(folder: Path, name: str) -> CellRecord | None:
    """What a cell that is done elsewhere has on record, if anything."""
    try:
        found = read_json((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and CellRecord.__required_keys__ == found.keys() and found["name"] == name
    return cast(CellRecord, found) if whole else None


def save_apart(folder: Path, cell: CellRecord) -> None:
    """Write what a cell has on record; before or after, nothing between."""
    write_text(folder / f"{cell['name']}.json", json.dumps(cell))


def extend(record: StudyRecord, cells: Iterable[Cell], sparsity: str) -> None:
    """Add the cells that a record lacks, all in the grid's order."""
    there = {cell["name"] for cell in record["cells"]}
    record["cells"] += [new_cell(cell, sparsity) for cell in cells if cell.name not in there]
    record["cells"].sort(key=lambda cell: cell_of(cell).place)
