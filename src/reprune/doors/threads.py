"""Tells if PyTorch uses more threads than this process has CPU time for. Knows nothing of what they compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from reprune.doors.groups import groups


def allowed_cpus(system: Path = Path("/")) -> float | None:
    """How many CPUs' time a container or a job may take; None if that of all CPUs it sees, or if unknown."""
    return min(_quotas(system), default=None)


def said_of_threads() -> str | None:
    """A note if the quota allows the time of fewer CPUs than PyTorch has threads.

    By default, PyTorch has a thread for each core that it sees. They wait for each other by spinning, which uses up the
    quota.
    """
    threads, cpus = torch.get_num_threads(), allowed_cpus()
    if cpus is None or threads <= math.ceil(cpus):
        return None
    return (
        f"PyTorch computes with {threads} threads, but this container or job is limited to {cpus:.3g} "
        f"{'CPU' if cpus == 1 else 'CPUs'}; OMP_NUM_THREADS={max(int(cpus), 1)} is faster"
    )


def _quotas(system: Path) -> Iterator[float]:
    for group, version in groups("cpu", system):
        with suppress(OSError, ValueError, ZeroDivisionError):  # there is no such group, or no quota ("max", -1)
            names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            said = " ".join((group / name).read_text(encoding="ascii") for name in names)
            quota, period = map(int, said.split())
            if quota > 0:
                yield quota / period
