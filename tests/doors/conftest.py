"""Fixtures for the doors' tests: a folder with a model and a text, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import typer.main

from reprune.doors.command.cli import main
from tests import tiny

QUICK = [
    *("--calibration", "text.txt", "--samples", "6", "--seqlen", "24", "--epochs", "2", "--lr", "1e-3"),
    *("--batch-size", "4", "--device", "cpu", "--set", "precision=float32"),
]
"""Flags with which a tiny model is pruned in a moment."""
_built = cache(typer.main.get_command)


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture
def here(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds `llama` and `text.txt`. Output is not a terminal, and there is no network."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "llama").symlink_to(llama)
    (folder / "text.txt").write_text(tiny.text(6_000), encoding="utf-8")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def cli(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs `reprune` with the given arguments and returns its exit code and output.

    All calls share what Typer makes of the commands' functions, which it would make anew for each.
    """
    del here
    monkeypatch.setattr(typer.main, "get_command", _built)

    def run(*arguments: str | Path) -> Said:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert isinstance(end.value.code, int)
        return Said(end.value.code, *capfd.readouterr())

    return run


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a finished run."""
    record: dict[str, Any] = json.loads((folder / "reprune.json").read_text(encoding="utf-8"))
    return record
