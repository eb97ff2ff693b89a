"""What memory this process takes, and the most that it has held since that was last forgotten."""

from __future__ import annotations

import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from reprune.model.full_speed import trim_heap
from reprune.model.whole import collect_models


def forget_peak_memory(device: str) -> None:
    """Give back memory that is no longer used, and let the peak count from now on, where the system can (Linux)."""
    collect_models()  # one that was evaluated before would count as this run's memory
    trim_heap()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if device.startswith("cuda") and torch.cuda.is_initialized():  # before, there is none
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: str) -> dict[str, int]:
    """The most resident memory that this process has held since `forget_peak_memory`, on the host and the device."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii")):
            host = int(found[1]) * 1024
    return {
        "host": host,
        "device": torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0,
    }


def resident_bytes() -> int:
    """What this process takes now; the most that it has taken where the system does not say (it is no Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory_bytes("cpu")["host"]
