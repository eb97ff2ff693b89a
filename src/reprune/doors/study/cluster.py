"""The cells of a study as tasks of a Ray cluster: as many at a time as its nodes have cores, GPUs and memory for.

All nodes see the study's folder, the model and the texts by the same paths. A worker saves its cell's record beside the
study's. If a worker is lost, another goes on with its cell from the last finished window.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, final

import torch

from reprune.doors.processes import other_versions
from reprune.doors.study.cell import CellTask, Outcome, attempt
from reprune.doors.study.hands import Hands
from reprune.doors.study.needs import Needs
from reprune.doors.study.record import CellRecord, read_apart, save_apart
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine.record import versions
from reprune.errors import InputError
from reprune.files.durable import write_text
from reprune.files.local import local_path
from reprune.planning.paths import absolute, with_path
from reprune.planning.sources import real_path

RETRIES = 3
"""How often a cell whose worker is lost is given to another."""
_MARK = "mark"  # the file by which a node tells whether it sees the study's folder
_PATIENCE = 10.0  # seconds for a cluster to answer
_SAID_HERE = "worker died or was killed"  # in messages that Ray need not print
_NO_OBJECTS = 100_000_000  # bytes for Ray's object store, which is not used


@final
class OnRay(Hands):
    """The workers of a Ray cluster."""

    def __init__(self, address: str, apart: Path, watcher: StudyWatcher) -> None:
        """Connect to a cluster, or start one.

        Args:
            address: of the cluster; if empty, that in RAY_ADDRESS, or else a new one on this machine alone.
            apart: the folder for records of unfinished cells.
            watcher: receives the study's events.

        Raises:
            InputError: Ray is not installed, or there is no cluster.
        """
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _SAID_HERE)
            import ray
        except ImportError:
            raise InputError("--ray needs Ray; install it with: pip install 'reprune[ray]'") from None
        self._ray: Any = ray
        self._apart = apart
        self._watcher = watcher
        self._needs: Mapping[str, Needs] = {}
        address = address or os.environ.get("RAY_ADDRESS", "")
        _check_reachable(address)
        own = {"address": "local", "include_dashboard": False, "object_store_memory": _NO_OBJECTS}
        try:
            ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InputError(f"--ray {address}: no cluster that can be used ({_short(error)}).") from None

    def check(self, wanted: Mapping[str, Needs], pruners: Sequence[str] = ()) -> None:
        """Set what cells need, by name, and check that nodes have it and can run these pruners.

        Raises:
            InputError: no node has what a cell needs, or one that has it lacks reprune or has other versions.
        """
        living = [node for node in self._ray.nodes() if node["Alive"]]
        nodes = [node["Resources"] for node in living]
        for name, needs in wanted.items():
            if not any(_times(node, needs) for node in nodes):
                largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("memory", 0)))
                has = Needs(int(largest.get("CPU", 0)), int(largest.get("GPU", 0)), int(largest.get("memory", 0)))
                raise InputError(
                    f"--ray: cell {name} needs {needs}; no node has that (the largest: {has}). Give a larger "
                    "cluster, fewer cores per cell (--ray-cpus), or less to hold (streams.memory, fewer samples)."
                )
        self._look_at(
            [node for node in living if any(_times(node["Resources"], needs) for needs in wanted.values())], pruners
        )
        self._needs = wanted
        each = [min(_times(node, needs) for needs in wanted.values()) for node in nodes] if wanted else []
        self.at_once = max(1, sum(each))

    def _look_at(self, nodes: Sequence[Mapping[str, Any]], pruners: Sequence[str]) -> None:
        """Raise `InputError` unless each node has reprune and these pruners in the versions that are here."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray, here = self._ray, versions(*pruners)
        asked = []
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ask = ray.remote(versions).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            asked.append(ask.remote(*pruners))
        for node, answer in zip(nodes, asked, strict=True):
            name = node["NodeManagerHostname"]
            try:
                said = other_versions(ray.get(answer), here, "here")
            except ray.exceptions.RayError as error:
                raise InputError(
                    f"--ray: node {name} cannot load reprune ({_last_line(error)}); install it there as it is here."
                ) from None
            if said:
                raise InputError(f"--ray: node {name} has {said}; install the same on all nodes.")

    def do(self, tasks: Sequence[CellTask]) -> Iterator[tuple[CellTask, Outcome]]:
        ray, mark = self._ray, secrets.token_hex(8)
        self._apart.mkdir(parents=True, exist_ok=True)
        write_text(self._apart / _MARK, mark)
        # Ray's own retries are off, as they would not be reported.
        running = {self._begin(task, mark): (task, RETRIES) for task in tasks}
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            task, retries = running.pop(ended)
            try:
                outcome = self._outcome(ended, task)
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.RayTaskError):  # a fault in reprune
                    raise
                lost = f"its worker was lost ({_short(error)})"
                if retries:
                    self._watcher.note(f"cell {task.cell['name']}: {lost}; another goes on with it")
                    running[self._begin(task, mark)] = task, retries - 1
                    continue
                task.cell.update(read_apart(self._apart, task.cell["name"]) or task.cell)
                outcome = Outcome(error=f"{lost}, as were {RETRIES} before it")
            self._watcher.cell_started(task.cell, *task.place)
            yield task, outcome
            (self._apart / f"{task.cell['name']}.json").unlink(missing_ok=True)

    def _begin(self, task: CellTask, mark: str) -> Any:
        """Give a cell to a worker."""
        name, ray = task.cell["name"], self._ray
        needs = self._needs[name]
        remote = ray.remote(do_cell).options(
            name=name, num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory_bytes, max_retries=0
        )
        return remote.remote(_from_anywhere(task), self._apart.resolve(), mark, needs.cpus)

    def _outcome(self, ended: Any, task: CellTask) -> Outcome:
        """A worker's outcome; its numbers are copied to the cell's record."""
        cell, outcome, notes = self._ray.get(ended)
        for note in notes:
            self._watcher.note(note)
        task.cell.update(cell)
        assert isinstance(outcome, Outcome)
        return outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster, which ends what still runs."""
        self._ray.shutdown()


def do_cell(task: CellTask, apart: Path, mark: str, cpus: int) -> tuple[CellRecord, Outcome, list[str]]:
    """Do a cell in this process, a worker: begin it, or go on with what an earlier worker left.

    Returns:
        The cell's record, its outcome, and notes for the user.
    """
    torch.set_num_threads(cpus)
    if not _sees(apart, mark):
        error = f"node {os.uname().nodename} does not see the study's folder; put it on a disk that all nodes see"
        return task.cell, Outcome(error=error), []
    cell = read_apart(apart, task.cell["name"]) or task.cell
    notes = _Notes()
    outcome = attempt(replace(task, cell=cell), None, lambda: save_apart(apart, cell), notes)
    return cell, outcome, notes.said


def _from_anywhere(task: CellTask) -> CellTask:
    """The same task with absolute paths."""
    measures = task.bench.measures
    if measures.zero_shot_data is not None:
        measures = replace(measures, zero_shot_data=measures.zero_shot_data.resolve())
    texts = [replace(text, source=with_path(text.source, real_path)) for text in task.texts]
    return replace(
        task,
        recipe=absolute(task.recipe).model_copy(update={"model": _absolute(task.recipe.model)}),
        folder=task.folder.resolve(),
        bench=replace(task.bench, measures=measures),
        texts=texts,
    )


def _absolute(model: str) -> str:
    path = local_path(model)
    return str(path.absolute()) if path.exists() else model  # a link goes on record, and is converted, by its own name


def _sees(apart: Path, mark: str) -> bool:
    try:
        return (apart / _MARK).read_text(encoding="utf-8") == mark
    except OSError:
        return False


def _check_reachable(address: str) -> None:
    """Raise `InputError` if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return  # auto, local and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()  # IPv6 is in brackets
    except (OSError, OverflowError) as error:
        raise InputError(f"--ray {address}: no cluster there ({error}).") from None


def _short(error: Exception) -> str:
    """The first sentence of Ray's message."""
    return re.split(r"(?<=[a-z])[.:](?:\s|$)", " ".join(str(error).split()))[0][:200]


def _last_line(error: Exception) -> str:
    """The last line of a node's error, without its traceback."""
    return str(error).strip().splitlines()[-1][:200]


def _times(node: Mapping[str, float], needs: Needs) -> int:
    """How many cells with such needs a node has room for at a time."""
    has = [
        (node.get("CPU", 0), needs.cpus),
        (node.get("GPU", 0), needs.gpus),
        (node.get("memory", 0), needs.memory_bytes),
    ]
    return min(int(there // wanted) for there, wanted in has if wanted)


@final
class _Notes(StudyWatcher):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)
