"""A command that refuses bad input, which the tests of bad input and of bad models share."""

from __future__ import annotations

from pathlib import Path

from tests.doors.conftest import Cli, Said


def refused(cli: Cli, here: Path, arguments: list[str], expected: str) -> Said:
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    said = cli(*arguments)
    assert said.code == 2
    assert said.err.startswith("error: ") or "Usage: " in said.err or said.err.startswith("Error: ")
    assert said.err.lower().count("error: ") == 1
    assert expected in said.err
    assert "Traceback" not in said.err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before, "something was written"
    return said
