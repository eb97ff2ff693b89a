"""Work on many architectures, each in a process of its own, which a model may end. Knows nothing of the work."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SECONDS = 400


def alone(work: Callable[[str, Path], dict[str, Any]], model_type: str, out: Path) -> dict[str, Any]:
    """Some work on an architecture in a process of its own, which a model may end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with _limited():
        return work(model_type, out)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def in_processes(
    names: list[str],
    work: Callable[[str, Path], dict[str, Any]],
    out: Path,
    jobs: int,
    done: Callable[[str, dict[str, Any]], None],
) -> None:
    """Each in a fork of this process, so many at a time; one that ends its process has failed."""
    context = multiprocessing.get_context("fork")
    while names:
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=None) as pool:
            futures = {name: pool.submit(work, name, out) for name in names}
            try:
                for name, future in futures.items():
                    done(name, future.result())
                    names = names[1:]
            except BrokenProcessPool:
                done(name, {"outcome": "failed", "why": "it ended its process", "seconds": 0.0})
                names = names[1:]
