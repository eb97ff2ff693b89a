"""Shared by the tests of studies: the flags of a small study, and its record."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reprune.doors.study import run as doors
from reprune.doors.study.record import CellRecord, StudyRecord, read_study
from tests import tiny
from tests.doors.conftest import QUICK

GRID = ["--pruners", "magnitude", "wanda", "--rungs", "LR", "BR+GP"]
ONE = ["--pruners", "magnitude", "--rungs", "LR"]
TEXTS = ["--text", "test.txt", "manual", "--text-seqlen", "32", "--windows", "4"]
STUDY = [*QUICK, *TEXTS]
"""Flags with which a tiny model is studied in some seconds."""

SETTINGS: dict[str, Any] = {
    "calibration": "text.txt",
    "samples": 6,
    "seqlen": 24,
    "epochs": 2,
    "lr": 1e-3,
    "batch_size": 4,
    "device": "cpu",
    "settings": ["precision=float32"],
    "texts": ["test.txt", "manual"],
    "text_seqlen": 32,
    "windows": 4,
}
"""The same as arguments of `study`."""
MEASURES = ("texts", "text_seqlen", "windows")
"""Those of them that `prune` does not take."""
QUICK = {name: value for name, value in SETTINGS.items() if name not in MEASURES}
"""The others."""


SMALL: Mapping[str, Any] = {"pruners": ["magnitude", "wanda"], "rungs": ["BR+GP"]}
"""The axes of a study of two cells."""


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Draw no figures and collect no garbage: both take longer than pruning a tiny model."""
    patch.setattr(gc, "collect", lambda: 0)
    patch.setattr(doors, "write_figures", lambda *_: None)


def write_test_text(folder: Path) -> None:
    """Write a text that is not calibrated on."""
    (folder / "test.txt").write_text(tiny.text(9_000)[6_000:], encoding="utf-8")


def studied(model: Path, folder: Path, **grid: Any) -> Path:
    """Do a study with these axes in a folder; returns the study's folder."""
    (folder / "text.txt").write_text(tiny.text(6_000), encoding="utf-8")
    write_test_text(folder)
    texts = {"calibration": str(folder / "text.txt"), "texts": [str(folder / "test.txt"), "manual"]}
    with pytest.MonkeyPatch.context() as without:
        quicken(without)
        doors.study(model, folder / "s", **grid, **{**SETTINGS, **texts})
    return folder / "s"


def copy_of(whole: Path, here: Path) -> Path:
    """A copy of a study, to change, as if it had been made here."""
    shutil.copytree(whole, here / "s")
    return here / "s"


def cell(study: Path, name: str) -> CellRecord:
    """One cell of a study's record."""
    return next(cell for cell in read_study(study)["cells"] if cell["name"] == name)


def numbers(record: StudyRecord) -> list[Any]:
    """All numbers of the cells' runs and measures, except times, memory and machines."""
    varying = ("seconds", "measuring_seconds", "peak_memory_bytes", "machine", "windows")
    return [{key: value for key, value in cell.items() if key not in varying} for cell in record["cells"]]
