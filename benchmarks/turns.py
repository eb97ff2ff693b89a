"""Several ways to do one thing, each in a process of its own, that take turns, so that other load affects all alike."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from reprune.engine.peak_memory import peak_memory_bytes


def serve(measure: Callable[[], dict[str, Any]]) -> None:
    """In a worker: measure once for each line of the standard input, and print the result as a line of JSON."""
    for _ in sys.stdin:
        began, busy = time.perf_counter(), time.process_time()
        found = measure()
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        peak = peak_memory_bytes("cpu")["host"]
        print(json.dumps({**found, "seconds": seconds, "busy": busy, "peak": peak}), flush=True)


def take_turns(ways: Sequence[str], rounds: int) -> list[dict[str, dict[str, Any]]]:
    """Start this script again with `--worker WAY` for each way, let each warm up, and measure all in turn."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {way: subprocess.Popen([sys.executable, *sys.argv, "--worker", way], **pipes) for way in ways}
    try:
        for process in processes.values():
            _ask(process)  # loads, and warms up
        return [{way: _ask(process) for way, process in processes.items()} for _ in range(rounds)]
    finally:
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and from the least to the largest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found
