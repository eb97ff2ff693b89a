"""A study's folder and its record, study.json, which is written durably after every step. Runs nothing.

study.json         all numbers of all cells, and what decides them
study.md, .csv     the same as tables, made from it each time
figures/           pictures of them
cells/NAME/        what `reprune prune` left of each cell: reprune.json and recipe.yaml, which make it again
.cells/            on a cluster: the records of unfinished cells
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError

from reprune.doors.prepare import check_out
from reprune.doors.records import study as records
from reprune.doors.records.run import fault
from reprune.doors.records.study import FILE
from reprune.doors.study.grid import Cell, flat
from reprune.errors import InputError
from reprune.files.durable import unfinished, write_text
from reprune.files.lock import locked
from reprune.files.readable import is_there
from reprune.files.wellformed import read_json

KIND, FORMAT = "reprune study", 1
FIGURES = "figures"

StudyRecord = dict[str, Any]
"""The content of study.json, which `records.Study` describes."""
CellRecord = dict[str, Any]
"""One of its cells, which `records.Cell` describes."""


def new_cell(cell: Cell, sparsity: str) -> CellRecord:
    """The record of a cell that has not been begun."""
    own = {"name": cell.name, "sparsity": sparsity, "status": "pending", "folder": _folder_of(cell.name)}
    return records.Cell(**asdict(cell), **own).model_dump(mode="json")


def _folder_of(name: str) -> str:
    """The folder of the cell of this name, within the study's; a cell that begins removes what is in it."""
    return f"cells/{name}"


def cell_of(record: CellRecord) -> Cell:
    """The cell of the grid that a record describes."""
    return Cell(record["pruner"], record["rung"], record["only"], record["seed"], record["self_generate"])


def read_study(folder: Path) -> StudyRecord:
    """The record of a study; raises `InputError` if there is none, or one that cannot be read."""
    path = folder / FILE
    try:
        record: StudyRecord = read_json(path.read_text(encoding="utf-8"))
        records.Study.model_validate(record)
        if not isinstance(record["settings"].get("pruner"), dict):
            raise ValueError("settings.pruner is missing")
        for cell in record["cells"]:
            cell.setdefault("machine", None)  # studies that are older than this key go on
            if missing := records.Cell.model_fields.keys() - cell.keys():
                raise ValueError(f"{min(missing)} is missing in a cell")
            if not cell["name"] == cell_of(cell).name == Path(cell["name"]).name:
                raise ValueError(f"{cell['name']!r} is no name of that cell")
            if cell["folder"] != _folder_of(cell["name"]):
                raise ValueError(f"a cell's folder is {cell['folder']!r}, not {_folder_of(cell['name'])}")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: holds no study of reprune ({FILE}).") from None
    except (OSError, ValueError) as error:
        said = fault(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
        raise InputError(f"{path}: this version of reprune cannot read it as a study ({said:.100}).") from None
    return record


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two nested mappings, in words: `solver.epochs 2, now 3`."""
    was, is_ = flat(before), flat(now)
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
@dataclass(frozen=True)
class StudyFolder:
    """The folder of one study."""

    path: Path

    @property
    def exists(self) -> bool:
        """Whether a study has begun here; raises `InputError` if the folder cannot be read."""
        way_on = "check its permissions, or give another folder"
        return is_there(self.path / FILE, f"--out {self.path}", way_on)

    def check(self) -> None:
        """Raise `InputError` unless a study can begin or go on here.

        Files of a process that was killed before its study began do not matter.
        """
        begun, cells = self.exists, self.path / "cells"
        for folder in (self.apart, self.path / FIGURES, cells, *cells.glob("*")):
            if folder.is_symlink():  # what it points to, or what is in there, would be removed
                raise InputError(
                    f"--out {self.path}: {folder} is a link to {folder.readlink()}; put a folder in its place."
                )
        left = [unfinished(self.path / FILE)]
        if not begun and not (self.path.is_dir() and list(self.path.iterdir()) == left):
            check_out(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context in which the folder exists, and is locked against a second process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, self.path, "study"):
            yield

    def cell(self, record: CellRecord) -> Path:
        """The folder of a cell's run."""
        return self.path / _folder_of(record["name"])

    @property
    def apart(self) -> Path:
        """The folder for records of cells that are done elsewhere, until study.json has them."""
        return self.path / ".cells"

    def pick_up(self, record: StudyRecord) -> None:
        """Copy the records of cells that are done elsewhere into the study's."""
        for cell in record["cells"]:
            if cell["status"] != "done" and (found := read_apart(self.apart, cell["name"])) is not None:
                cell.update(found)

    def save(self, record: StudyRecord) -> None:
        """Write study.json atomically."""
        write_text(self.path / FILE, json.dumps(record, indent=1) + "\n")


def read_apart(folder: Path, name: str) -> CellRecord | None:
    """The record of a cell that is done elsewhere, if there is a whole one."""
    try:
        found: CellRecord = read_json((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and records.Cell.model_fields.keys() == found.keys() and found["name"] == name
    return found if whole else None


def save_apart(folder: Path, cell: CellRecord) -> None:
    """Write a cell's record atomically."""
    write_text(folder / f"{cell['name']}.json", json.dumps(cell))


def extend(record: StudyRecord, cells: Iterable[Cell], sparsity: str) -> None:
    """Add the cells that a record lacks, and sort all in the grid's order."""
    there = {cell["name"] for cell in record["cells"]}
    record["cells"] += [new_cell(cell, sparsity) for cell in cells if cell.name not in there]
    record["cells"].sort(key=lambda cell: cell_of(cell).place)
