"""The same recipe on the same machine gives the same bytes: in three processes, whatever their hash seeds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.benchmark import load
from tests.doors.command.test_interruption import COMMAND, SOURCES
from tests.doors.conftest import QUICK


@pytest.mark.parametrize(
    ("how", "threads"),
    [
        (["--pruner", "sparsegpt", "--reconstruct", "BR+GP+CR", "--set", "precision=bfloat16"], "2"),
        (["--pruner", "wanda", "--reconstruct", "auto", "--set", "solver.start=least-squares"], "1"),
    ],
    ids=["BR+GP+CR", "auto"],
)
def test_three_processes_write_the_same_bytes(how: list[str], threads: str, here: Path) -> None:
    contents, made = load("killing").contents, []
    for seed in ("0", "1", "2"):
        environment = {**os.environ, **SOURCES, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        command = [*COMMAND, "prune", "llama", "--out", seed, *QUICK, *how]
        subprocess.run(command, env=environment, cwd=here, check=True, capture_output=True)
        made.append(contents(here / seed))
    assert made[0]["reprune.json"]["machine"]["threads"] == int(threads)
    assert made[0] == made[1] == made[2]
