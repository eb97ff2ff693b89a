"""Reads from a run's folder how far the run is. Knows nothing of models, and loads no PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprune.doors.records.study import FILE as STUDY
from reprune.engine.ledger import Ledger
from reprune.engine.names import RECORD
from reprune.errors import InputError
from reprune.files.local import local_path, quoted_command
from reprune.files.wellformed import read_json


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    finished: bool
    windows: int  # including the distillation, which comes after them
    windows_done: int
    recipe: dict[str, Any]
    last: dict[str, Any] | None  # the record of the last finished window or distillation
    running: bool = False  # whether a process is working on it now


def status(out: str | os.PathLike[str]) -> Status:
    """How far the run in a folder is; raises `InputError` if there is none."""
    folder = local_path(out, "out")
    ledger = Ledger(folder)
    if ledger.exists:
        job, lines = ledger.job(), ledger.lines()
        last = lines[-1]["window"] if lines else None
        return Status(False, job["windows"], len(lines), job["recipe"], last, ledger.running)
    if (folder / RECORD).exists():
        try:
            record = read_json((folder / RECORD).read_text(encoding="utf-8"))
            done = [*record["windows"]]
            if step := record.get("distillation"):
                done.append(step)
            return Status(True, len(done), len(done), record["recipe"], done[-1])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise damaged(folder, error) from None
    said = what_is_there(folder) or f"holds no run of reprune, neither finished ({RECORD}) nor unfinished"
    raise InputError(f"{out}: {said}.")


def what_is_there(folder: Path) -> str | None:
    """What a folder without a result holds, and how to go on; None if that is neither a run nor a study."""
    if (ledger := Ledger(folder)).exists:
        return ledger.way_on
    if (folder / STUDY).is_file():
        return (
            f"holds a study: {quoted_command('reprune', 'report', str(folder))} shows it, and the same 'reprune study' "
            f"command goes on with it; with --keep-models, its cells' models are {folder / 'cells'}/NAME"
        )
    return None


def damaged(folder: Path, error: Exception, finished: bool = True) -> InputError:
    """The error for a folder whose record, or whose unfinished run's job, cannot be read because of `error`."""
    said = "its contents are not those of a run"
    if isinstance(error, KeyError):
        said = f"it holds no {error}"
    elif isinstance(error, OSError | ValueError):
        said = str(error)
    if not finished:
        return Ledger(folder).damaged_job(said)
    return InputError(f"{folder / RECORD}: damaged ({said:.100}); the model beside it may still load.")
