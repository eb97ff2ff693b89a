"""Runs work on many architectures, each in a process of its own, which a model may crash. Knows nothing of the work."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

SECONDS = 400


def alone(work: Callable[[str, Path], dict[str, Any]], model_type: str, out: Path) -> dict[str, Any]:
    """Do some work on an architecture in a separate process, which a model may end."""
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
    """Do each in a fork of this process, `jobs` at a time; one that ends its process has failed.

    A process that ends breaks the pool for all that run beside it. So the first of these is done again by itself, to
    find the one that failed.
    """
    while names:
        with _pool(jobs) as pool:
            futures = {name: pool.submit(work, name, out) for name in names}
            with suppress(BrokenProcessPool):
                for name, future in futures.items():
                    done(name, future.result())
                    names = names[1:]
        if names:
            with _pool(1) as pool:
                try:
                    outcome = pool.submit(work, names[0], out).result()
                except BrokenProcessPool:
                    outcome = {"outcome": "failed", "why": "it ended its process"}
            done(names[0], outcome)
            names = names[1:]


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork"))


def read(file: Path) -> dict[str, Any]:
    """The outcomes in a file, if it exists."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def sweep_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all sweeps over tiny models have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--jobs", type=int, default=2)
    return parser


def sweep(
    names: Iterable[str],
    only: list[str] | None,
    work: Callable[[str, Path], dict[str, Any]],
    file: Path,
    jobs: int,
    say: Callable[[str, dict[str, Any]], None],
) -> dict[str, Any]:
    """Do the names that the file lacks, or some of them anew, in the file's folder; the file keeps their outcomes."""
    found = read(file)

    def done(name: str, outcome: dict[str, Any]) -> None:
        found[name] = outcome
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        say(name, outcome)

    remaining = only or [name for name in names if name not in found]
    in_processes(remaining, partial(alone, work), file.parent, jobs, done)
    return found
