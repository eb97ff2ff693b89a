"""Measures the speed of this machine, which forecasts are computed from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import gelu, scaled_dot_product_attention

from reprune.model.costs import Flops
from reprune.model.full_speed import full_speed

_SUSTAINED = 0.9  # a run's speed over the best in a second, by the runs of docs/measurements/forecasts.md


@dataclass(frozen=True)
class Speed:
    """What a device does per second."""

    products: float  # floating-point operations of matrix products in the run's precision
    full: float  # the same in float32
    traffic: float  # bytes read and written by GELU in float32, which stands for all elementwise operations
    link: float = math.inf  # bytes moved between a stream on the host and the device; infinite if they are the same
    attention: float | None = None  # floating-point operations of PyTorch's fused attention; None: as `products`

    def seconds(self, flops: Flops) -> float:
        """The time of a pass's products and attention, without traffic."""
        return flops.products / self.products + flops.attention / (self.attention or self.products)


@full_speed()
def measure_speed(device: torch.device, products: torch.dtype, meanwhile: Callable[[], object] = bool) -> Speed:
    """Time products, attention and GELU with tensors that are large enough to fill the device, for about a second.

    GELU by the tangent computes more than it moves on a CPU, as the elementwise operations of a block do on the whole:
    its time hardly depends on what the cache holds. Its results go to memory that is kept, as those of a run do.

    Half of it is before `meanwhile` and half after, as a machine may be slow for more than half a second. Rates are a
    tenth lower than the best found: runs do not keep that up.
    """
    size = _size(device)
    samples, heads, tokens, width = (1 if device.type == "cpu" else size // 512), 16, 1024, 64
    many = torch.ones(size * size * 8, device=device)
    states = torch.randn(samples, heads, tokens, width, device=device, dtype=products)
    kept = torch.ones(0 if device.type == "cpu" else 2**26)
    gathered = torch.ones(kept.shape, pin_memory=device.type == "cuda")  # as a run's states are
    matrix = torch.randn(size, size, device=device)
    rounded = matrix.to(products)
    runs: list[Callable[[], torch.Tensor]] = [
        lambda: gelu(many, approximate="tanh"),
        lambda: matrix @ matrix,
        lambda: rounded @ rounded,
        lambda: scaled_dot_product_attention(states, states, states, is_causal=True),
        lambda: gathered.copy_(kept).to(device),
    ]
    before = _best_of_each(device, *runs)
    meanwhile()
    best = map(min, before, _best_of_each(device, *runs))
    moved, full, multiplied, attending, sending = (seconds / _SUSTAINED for seconds in best)
    flops = 2.0 * size**3
    return Speed(
        flops / (full if products == torch.float32 else multiplied),
        flops / full,
        2.0 * many.nbytes / moved,
        math.inf if device.type == "cpu" else kept.nbytes / sending,
        4.0 * states.numel() * tokens / attending,  # counts all pairs of tokens, also those that the mask leaves out
    )


def _size(device: torch.device) -> int:
    """The size of square matrices that fill the device; all that is timed takes at most half of a GPU's free memory."""
    size = 1024 if device.type == "cpu" else 8192
    while size > 1024 and 80 * size**2 > torch.cuda.mem_get_info(device)[0] / 2:
        size //= 2
    return size


def _best_of_each(device: torch.device, *runs: Callable[[], torch.Tensor]) -> list[float]:
    """The shortest time of each run in seconds, over its tries in half a second; at least one after a warm-up.

    The runs take turns, so that a momentary disturbance does not hit all tries of one of them.
    """
    found: list[float] = []
    end = time.perf_counter() + 0.5
    while len(found) < 2 * len(runs) or time.perf_counter() < end:
        for run in runs:
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found.append(time.perf_counter() - began)
    return [min(found[len(runs) + place :: len(runs)]) for place in range(len(runs))]  # the first round warms up
