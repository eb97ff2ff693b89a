"""Measures the memory that is left for this process: on a GPU, on the machine, or in its container's or job's limit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from reprune.doors.groups import groups


@final
@dataclass(frozen=True)
class _Controller:
    """The files in which a version of Linux's control groups reports memory."""

    limit: str
    used: str
    reclaimable: tuple[str, ...]  # parts of it, in memory.stat: file pages and the like, which can be freed


_CONTROLLERS = {
    1: _Controller("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: _Controller("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
}


def available_memory(device: str) -> int | None:
    """The bytes that can still be allocated on a device; None if the system does not tell."""
    if device.startswith("cuda"):
        gpu = torch.device(device)
        kept = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)  # freed, but kept by PyTorch
        return int(torch.cuda.mem_get_info(gpu)[0]) + kept
    return free_memory()


def free_memory(system: Path = Path("/")) -> int | None:
    """The bytes that can still be allocated: the least left on the machine or in a group; None if unknown."""
    return min((*_of_machine(system), *_of_groups(system)), default=None)


def _of_machine(system: Path) -> Iterator[int]:
    with suppress(OSError):
        said = (system / "proc/meminfo").read_text(encoding="ascii")
        if found := re.search(r"MemAvailable:\s+(\d+) kB", said):
            yield int(found[1]) * 1024


def _of_groups(system: Path) -> Iterator[int]:
    """The free bytes of each group that has a limit."""
    for group, version in groups("memory", system):
        yield from _of_group(group, _CONTROLLERS[version])


def _of_group(group: Path, controller: _Controller) -> Iterator[int]:
    with suppress(OSError, ValueError):  # there is no such group, or no limit ("max")
        limit = int((group / controller.limit).read_text(encoding="ascii"))
        used = int((group / controller.used).read_text(encoding="ascii"))
        pairs = (line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        yield max(limit - used + sum(int(size) for name, size in pairs if name in controller.reclaimable), 0)
