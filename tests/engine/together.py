"""Runs functions in several processes at once, as `torchrun` would start them.

They are forked from a process that has imported everything, so another process costs next to nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, final

SOURCES = Path(__file__).parents[2] / "src"
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.engine.preloaded"])


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


@final
class Rank:
    """One process."""

    def __init__(
        self, work: Callable[..., None], arguments: Sequence[Any], places: Mapping[str, str], cwd: Path
    ) -> None:
        self._files = [Path(tempfile.mkstemp()[1]) for _ in range(2)]
        _start_server()
        self._process = _SERVER.Process(target=_child, args=(work, arguments, dict(places), cwd, self._files))
        self._process.start()

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, seconds: float) -> Ended:
        """Wait for its end; raises `TimeoutError` if that takes longer."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"a process did not end in {seconds} s")
        said = [file.read_text() for file in self._files]
        for file in self._files:
            file.unlink()
        return Ended(self._process.exitcode, *said)


def _start_server() -> None:
    """Start the fork server if it does not run yet; it finds the modules to import by PYTHONPATH alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCES), str(SOURCES.parent)])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _child(
    work: Callable[..., None], arguments: Sequence[Any], places: Mapping[str, str], cwd: Path, files: Sequence[Path]
) -> None:
    import torch

    for number, file in zip((1, 2), files, strict=True):
        with file.open("w") as into:
            os.dup2(into.fileno(), number)
    os.environ.update(places)
    os.chdir(cwd)
    torch.set_num_threads(1)
    work(*arguments)


def places(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment variables that a launcher sets."""
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    return {name: str(value) for name, value in found.items()}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(count: int, work: Callable[..., None], *arguments: Any) -> list[Rank]:
    """Start `count` ranks that each do this work."""
    port = free_port()
    return [Rank(work, arguments, _told() | places(rank, count, port), Path.cwd()) for rank in range(count)]


def start_alone(work: Callable[..., None], *arguments: Any) -> Rank:
    """Start a process that does this work without a launcher's environment."""
    return Rank(work, arguments, _told(), Path.cwd())


def _told() -> dict[str, str]:
    return {name: os.environ[name] for name in ("COLUMNS", "REPRUNE_CACHE") if name in os.environ}


def command(*arguments: str) -> None:
    """Run the command line."""
    from reprune.doors.command.cli import main

    main(arguments)


def script(path: str, *arguments: str) -> None:
    """Run a script with arguments."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def prune(jobs: Sequence[tuple[str, str, dict[str, Any]]], folder: Path) -> None:
    """Do jobs one after the other; each is a model, the result's folder and a recipe's contents."""
    import json

    from reprune.doors.api import prune_by_recipe
    from reprune.engine.watcher import Watcher
    from reprune.math.ranks import Together
    from reprune.planning.layers import resolve_recipe

    ranks = Together(120)
    for model, out, content in jobs:
        record = prune_by_recipe(resolve_recipe(model, content), Path(out), Watcher(), ranks=ranks)
        (folder / f"{Path(out).name}-{ranks.number}.json").write_text(json.dumps(record))
    ranks.close()
