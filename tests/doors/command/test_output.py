"""A command whose standard output cannot take what it prints ends with one plain message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.together import SOURCES

FULL = Path("/dev/full")
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCES)}


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["--version"]])
def test_a_full_output_is_said(arguments: list[str]) -> None:
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "reprune", *arguments]
        said = subprocess.run(command, env=_ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (said.returncode, said.stderr) == (1, "error: standard output: No space left on device\n")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_an_output_that_nobody_reads_is_no_error_to_tell(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "reprune", *arguments]
    running = subprocess.Popen(command, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    running.stdout.close()
    assert running.communicate()[1] == ""
    assert running.returncode == 1
