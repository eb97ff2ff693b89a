"""The memory that this process takes, and its peak since the last reset."""

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
    """Release memory that is no longer used and, where the system allows it (Linux), reset the peak."""
    collect_models()  # a model evaluated earlier would count as this run's memory
    trim_heap()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if device.startswith("cuda") and torch.cuda.is_initialized():  # otherwise there is no peak to reset
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: str) -> dict[str, int]:
    """The peak memory of this process since `forget_peak_memory`: resident on the host, allocated on the device."""
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
    """The resident memory of this process now; its peak on systems other than Linux, which do not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory_bytes("cpu")["host"]
