"""For tests of commands that are killed, interrupted or run as several processes: what an undisturbed one makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from reprune.doors.command.cli import main
from tests import tiny
from tests.doors.conftest import QUICK

CR = [*map(str, QUICK), "--reconstruct", "BR+GP+CR", "-q"]
"""Flags with which a tiny model is pruned in overlapping windows."""


@pytest.fixture(scope="package")
def by_one(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one process; tests must not change it."""
    folder = tmp_path_factory.mktemp("by-one")
    (folder / "text.txt").write_text(tiny.text(6_000), encoding="utf-8")
    with pytest.MonkeyPatch.context() as there, pytest.raises(SystemExit, match="0"):
        there.chdir(folder)
        main(["prune", str(llama), "--out", "out", *CR])
    return folder / "out"
