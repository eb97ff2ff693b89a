"""What this machine does in a second, and what this process takes: what forecasts go by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from reprune.model.costs import Flops
from reprune.model.float32 import fast_float32


@dataclass(frozen=True)
class Speed:
    """What a device does in a second."""

    products: float  # floating-point operations of matrix products in the run's precision
    full: float  # the same in float32
    traffic: float  # bytes moved by sums into new memory, which stand for all operations on each element
    link: float = math.inf  # bytes moved between host and device; where they are one, nothing moves
    attention: float | None = None  # floating-point operations of PyTorch's fused attention; None is as of products

    def seconds(self, flops: Flops) -> float:
        """Of a pass, what is not traffic."""
        return flops.products / self.products + flops.attention / (self.attention or self.products)


@fast_float32()
def measure_speed(device: torch.device, products: torch.dtype) -> Speed:
    """Time products, attention and additions of a size that fills the device, for about half a second."""
    size = 1024 if device.type == "cpu" else 8192
    samples, heads, tokens, width = (1 if device.type == "cpu" else 16), 16, 1024, 64

    def flops(dtype: torch.dtype) -> float:
        one, other = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
        return 2.0 * size**3 / _best(lambda: one @ other, device)

    many = torch.ones(size * size * 8, device=device)
    moved = 3.0 * many.nbytes / _best(lambda: many + many, device)
    full = flops(torch.float32)
    link = math.inf
    if device.type != "cpu":
        sent = torch.ones(2**26)
        link = sent.nbytes / _best(lambda: sent.to(device), device)
    states = torch.ones(samples, heads, tokens, width, device=device, dtype=products)
    attending = _best(lambda: scaled_dot_product_attention(states, states, states, is_causal=True), device)
    attention = 4.0 * states.numel() * tokens / attending  # all are counted, also those that a causal mask spares
    return Speed(full if products == torch.float32 else flops(products), full, moved, link, attention)


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
