"""The same recipe on the same machine gives the same bytes: in three processes, whatever their hash seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.benchmark import load
from tests.doors.command.test_interruption import SOURCES
from tests.doors.conftest import QUICK

RECIPES = {
    "BR+GP+CR": (2, ["--pruner", "sparsegpt", "--reconstruct", "BR+GP+CR", "--set", "precision=bfloat16"]),
    "auto": (1, ["--pruner", "wanda", "--reconstruct", "auto", "--set", "solver.start=least-squares"]),
}
"""The number of threads, and the flags."""
_ALL = """
import sys, torch
from reprune.doors.command.cli import main
for threads, arguments in {commands}:
    torch.set_num_threads(threads)
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            sys.exit(end.code)
"""
"""Both in one process, as starting one takes longer than pruning."""


def test_three_processes_write_the_same_bytes(here: Path) -> None:
    contents, made = load("killing").contents, []
    for seed in ("0", "1", "2"):
        commands = [
            (threads, ["prune", "llama", "--out", f"{seed}/{name}", *QUICK, *how])
            for name, (threads, how) in RECIPES.items()
        ]
        environment = {**os.environ, **SOURCES, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "2"}
        command = [sys.executable, "-c", _ALL.format(commands=commands)]
        subprocess.run(command, env=environment, cwd=here, check=True, capture_output=True)
        made.append(contents(here / seed))
    for name, (threads, _) in RECIPES.items():
        assert made[0][f"{name}/reprune.json"]["machine"]["threads"] == threads
    assert made[0] == made[1] == made[2]
