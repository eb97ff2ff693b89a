"""Processes that are killed: by themselves, right before one of their durable steps, or from outside at some moment."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STEPS = ("fsync", "replace", "ftruncate", "unlink", "rmdir")
_OF_ONE_RUN = {"seconds", "measuring_seconds", "peak_memory_bytes"}
"""The entries of a record that differ between runs."""


def contents(folder: Path) -> dict[str, Any]:
    """The contents of all files in a folder, without what differs between runs."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    return {name: _timeless(json.loads(raw)) if name.endswith(".json") else raw for name, raw in found.items()}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in _OF_ONE_RUN}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def in_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Do something in a separate process, perhaps killed after so many seconds; returns its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking: there is only one thread
        process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_before(step: int) -> list[int]:
    """Have this process kill itself just before the durable step of that number; returns the counter of steps.

    A durable step is a file forced to disk, renamed, cut or removed, or a folder removed.
    """
    count = [0]

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in _STEPS:
        setattr(os, name, counting(getattr(os, name)))
    return count


def steps_of(work: Callable[[], object], counted: Path) -> int:
    """Do something undisturbed in a separate process; returns the number of its durable steps.

    Args:
        work: what to do.
        counted: a file through which the number is passed.
    """

    def run() -> None:
        count = kill_before(-1)
        work()
        counted.write_text(str(count[0]), encoding="ascii")

    if in_child(run) != 0:
        raise SystemExit("the undisturbed run failed")
    return int(counted.read_text(encoding="ascii"))
