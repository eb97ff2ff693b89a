"""What this machine does in a second, and what this process takes: what forecasts go by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from reprune.model.float32 import fast_float32


@dataclass(frozen=True)
class Speed:
    """What a device does in a second."""

    products: float  # floating-point operations of matrix products in the run's precision
    full: float  # the same in float32
    traffic: float  # bytes moved by sums into new memory, which stand for all operations on each element
    link: float = math.inf  # bytes moved between host and device; where they are one, nothing moves


@fast_float32()
def measure_speed(device: torch.device, products: torch.dtype) -> Speed:
    """Time products and additions of a size that fills the device, for about half a second."""
    size = 1024 if device.type == "cpu" else 8192

    def flops(dtype: torch.dtype) -> float:
        one, other = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
        return 2.0 * size**3 / _best(lambda: one @ other, device)

    many = torch.ones(size * size * 8, device=device)
    moved = 3.0 * many.nbytes / _best(lambda: many + many, device)
    full = flops(torch.float32)
    link = math.inf
    if device.type != "cpu":
        states = torch.ones(2**26)
        link = states.nbytes / _best(lambda: states.to(device), device)
    return Speed(full if products == torch.float32 else flops(products), full, moved, link)


def _best(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    found = []
    for _ in range(6):  # the first warms up
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found)


def resident_bytes() -> int:
    """What this process takes now; 0 where the system does not say (it is no Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
