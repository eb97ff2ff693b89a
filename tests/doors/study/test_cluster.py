"""A study on a Ray cluster gives the same numbers as one in this process, whatever happens to its workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import reprune
from reprune.doors.study.record import read_study, save_apart
from reprune.doors.study.run import study
from tests.doors.conftest import Cli
from tests.doors.study.runs import GRID, ONE, SETTINGS, STUDY, numbers
from tests.engine import together
from tests.engine.together import Rank

ARGUMENTS = ["study", "llama", *STUDY, "--set", "guard=off"]
NODE = {"memory": 4_000_000_000, "object_store_memory": 100_000_000}
SPARED = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""Processes that Ray would start on its first node, and that nothing here asks for anything."""
BOUND = 300


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of three nodes: a head that does no work, and two nodes with a core each."""
    code = (
        "import sys\n"
        "from ray.cluster_utils import Cluster\n"
        f"cluster = Cluster(initialize_head=True, head_node_args={{'num_cpus': 0, **{NODE | SPARED}}})\n"
        f"for _ in range(2): cluster.add_node(num_cpus=1, **{NODE})\n"
        "print('at', cluster.address, flush=True)\n"
        "sys.stdin.read()\n"
        "cluster.shutdown()\n"
    )
    environment = {**os.environ, **quiet(tmp_path_factory.mktemp("home"))}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = next((line.split()[1] for line in process.stdout if line.startswith("at ")), None)
        if said is None:
            pytest.skip("no cluster of Ray can be started here")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_MODE", "disabled")
            yield said
        process.communicate("", timeout=60)


def quiet(home: Path) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(home)}


def workers(cell: str) -> list[int]:
    """The processes that do a cell."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(f"ray::{cell}".encode()):
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def kill_workers(cell: str, ready: Callable[[], bool], killed: list[int], times: int, over: threading.Event) -> None:
    """Kill the workers of a cell one after the other, each when `ready` says so, `times` times in all."""
    while len(killed) < times and not over.is_set():
        if (now := [process for process in workers(cell) if process not in killed]) and ready():
            os.kill(now[0], signal.SIGKILL)
            killed.append(now[0])
        time.sleep(0.02)


def run(here: Path, address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reprune", *ARGUMENTS, "--ray", address, "--ray-cpus", "1", *arguments]
    environment = {**os.environ, **quiet(here), "COLUMNS": "80"}
    return subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, timeout=BOUND, check=False
    )


def forked(here: Path, address: str, *arguments: str) -> Rank:
    """The same command in a process that need not import everything again."""
    environment = {**quiet(here), "COLUMNS": "80"}
    return Rank(together.command, [*ARGUMENTS, "--ray", address, "--ray-cpus", "1", *arguments], environment, here)


def test_its_numbers_are_those_of_one_process_though_a_worker_is_killed(
    here: Path, figures: None, address: str
) -> None:
    settings = {**SETTINGS, "epochs": 40, "settings": ["precision=float32", "guard=off"]}
    cell, killed, over = "wanda-BR+GP-seed0", [], threading.Event()
    ledger = here / "shared" / "cells" / cell / ".reprune" / "ledger.jsonl"
    killing = threading.Thread(target=kill_workers, args=(cell, ledger.exists, killed, 1, over))
    killing.start()
    said = run(here, address, "--out", "shared", "--epochs", "40", *GRID)
    over.set()
    killing.join()
    assert (said.returncode, said.stderr) == (0, "")
    assert len(killed) == 1
    study("llama", "alone", pruners=["magnitude", "wanda"], rungs=["LR", "BR+GP"], **settings)
    shared, alone = read_study(here / "shared"), read_study(here / "alone")
    assert numbers(shared) == numbers(alone)
    assert shared["data"] == alone["data"]
    assert {path.name for path in (here / "shared").iterdir()} == {path.name for path in (here / "alone").iterdir()}
    lost = [line for line in said.stdout.splitlines() if line.startswith(f"note: cell {cell}: its worker was lost (")]
    assert len(lost) == 1, said.stdout
    assert "raylet" not in said.stdout
    assert len(re.findall(r"^[1-4]/4 ", said.stdout, re.MULTILINE)) == 4


def test_an_interrupt_ends_the_tasks_too_and_the_study_goes_on_without_the_cluster(
    here: Path, address: str, cli: Cli
) -> None:
    cell = "magnitude-BR+GP-seed0"
    arguments = ["--out", "s", "--epochs", "150", "--pruners", "magnitude", "--rungs", "BR+GP"]
    process, until = forked(here, address, *arguments), time.monotonic() + BOUND
    while not (here / "s" / "cells" / cell / ".reprune" / "ledger.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send(signal.SIGINT)
    said = process.wait(60)
    assert (said.code, said.err) == (1, "interrupted; what is done is kept, the same command goes on from there\n")
    until = time.monotonic() + 60
    while workers(cell) and time.monotonic() < until:
        time.sleep(0.1)
    assert not workers(cell)
    assert reprune.status(here / "s" / "cells" / cell).windows_done >= 1
    alone = cli(*ARGUMENTS, *arguments)
    assert (alone.code, alone.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: no cluster there ("),
        (["--ray", "ray://127.0.0.1:1"], "--ray ray://127.0.0.1:1: no cluster there ("),
        (["--ray", "127.0.0.1:99999"], "--ray 127.0.0.1:99999: no cluster there ("),
        (["--ray-cpus", "2"], "--ray-cpus 2: has no effect without a Ray cluster; give --ray too."),
        (["--ray", "127.0.0.1:1", "--device", "cuda:1"], "--device cuda:1: Ray gives each cell a GPU of its own; give"),
        (["--ray", "127.0.0.1:1", "--ray-cpus", "0"], "--ray-cpus 0: expected at least 1."),
    ],
)
def test_wrong_uses_are_refused_before_anything(arguments: list[str], message: str, here: Path, cli: Cli) -> None:
    said = cli("study", "llama", "--out", "s", *ONE, *STUDY, *arguments)
    assert said.code == 2
    assert said.err.startswith(f"error: {message}")
    assert not (here / "s").exists()


def test_what_no_node_has_is_refused_and_nothing_is_written(here: Path, address: str) -> None:
    said = forked(here, address, "--out", "s", "--ray-cpus", "3", *ONE).wait(BOUND)
    assert said.code == 2
    assert "cell magnitude-LR-seed0 needs 3 CPU, " in said.err
    assert "no node has that (the largest: " in said.err
    assert not (here / "s").exists()


def test_what_a_worker_has_left_is_taken_over_by_a_study_that_goes_on_without(here: Path) -> None:
    study("llama", "s", pruners=["magnitude"], rungs=["LR"], **SETTINGS)
    record = json.loads((here / "s" / "study.json").read_text())
    (done,) = record["cells"]
    pending = {**done, "status": "pending", "test_error": {}, "perplexity": {}, "blocks": []}
    (here / "s" / "study.json").write_text(json.dumps({**record, "cells": [pending]}))
    (here / "s" / ".cells").mkdir()
    save_apart(here / "s" / ".cells", {**done, "status": "pending"})
    found = study("llama", "s", pruners=["magnitude"], rungs=["LR"], **SETTINGS)
    assert found["cells"] == [done], "not measured anew: the time would be another"
    assert not (here / "s" / ".cells").exists()
