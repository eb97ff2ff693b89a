"""How much memory is left for this process: of a GPU's, or the machine's, or what its container or job may take."""

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
    """Where a version of Linux's control groups keeps what it says of memory."""

    limit: str
    used: str
    reclaimable: tuple[str, ...]  # of what is used, in memory.stat: pages of files and the like, which make room


_CONTROLLERS = {
    1: _Controller("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: _Controller("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
}


def available_memory(device: str) -> int | None:
    """Bytes that can still be taken of a device's memory; None where the system does not say."""
    if device.startswith("cuda"):
        gpu = torch.device(device)
        kept = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)  # by PyTorch, of what it has freed
        return int(torch.cuda.mem_get_info(gpu)[0]) + kept
    return free_memory()


def free_memory(system: Path = Path("/")) -> int | None:
    """Bytes that can still be taken: the least that the machine and each group of this process has; None: not known."""
    return min((*_of_machine(system), *_of_groups(system)), default=None)


def _of_machine(system: Path) -> Iterator[int]:
    with suppress(OSError):
        said = (system / "proc/meminfo").read_text(encoding="ascii")
        if found := re.search(r"MemAvailable:\s+(\d+) kB", said):
            yield int(found[1]) * 1024


def _of_groups(system: Path) -> Iterator[int]:
    """Of all groups that have a limit."""
    for group, version in groups("memory", system):
        yield from _of_group(group, _CONTROLLERS[version])


def _of_group(group: Path, controller: _Controller) -> Iterator[int]:
    with suppress(OSError, ValueError):  # there is no such group, or no limit ("max")
        limit = int((group / controller.limit).read_text(encoding="ascii"))
        used = int((group / controller.used).read_text(encoding="ascii"))
        pairs = (line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        yield max(limit - used + sum(int(size) for name, size in pairs if name in controller.reclaimable), 0)
