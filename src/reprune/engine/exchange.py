"""What each of several processes does of a run, and what they exchange: counted for a forecast.

What networks do is from data sheets, and a share of it that is an estimate; no run on them has been held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import torch

from reprune.errors import InputError

_REACHED = 0.7  # of a network's peak
_DRAWS = 200  # of batches, to see how unevenly they fall


@final
@dataclass(frozen=True)
class Network:
    """What processes exchange sums and weights over."""

    name: str
    bandwidth: float  # bytes that one sends in a second, at most
    latency: float  # seconds of a collective, whatever its size


NETWORKS = {
    "local": Network("one machine, by its memory", 4e8, 5e-4),
    "nvlink": Network("NVLink of H100", 450e9, 3e-5),
    "100g": Network("100 Gbit/s between machines", 12.5e9, 1e-4),
}
"""NVLink: NVIDIA's data sheet, each way. By memory: gloo on two cores, with what it waits (docs/distributed.md)."""


def find_network(name: str) -> Network:
    """Raises `InputError` for one that is not known."""
    if name not in NETWORKS:
        raise InputError(f"--network {name}: expected one of {', '.join(NETWORKS)}.")
    return NETWORKS[name]


@final
@dataclass(frozen=True)
class Crew:
    """So many processes."""

    count: int = 1
    network: Network = NETWORKS["local"]

    def part(self, samples: int) -> int:
        """How many of so many samples the one has that has most."""
        return -(-samples // self.count)

    def per_epoch(self, samples: int, batch_size: int) -> float:
        """How many samples a pass over all takes in steps, each as long as the process with the most of its batch."""
        batch = min(batch_size, samples)
        return float(samples) if self.count == 1 else _most(samples, batch, self.count) * samples / batch

    def longest(self, seconds: Sequence[float]) -> float:
        """How long jobs take that are dealt out in turn."""
        return max((sum(seconds[first :: self.count]) for first in range(self.count)), default=0.0)

    def seconds(self, summed: float, told: float, collectives: int) -> float:
        """How long an exchange takes.

        Args:
            summed: bytes of what is summed over all, which each sends nearly twice.
            told: bytes of what one tells all others.
            collectives: how often.
        """
        if self.count == 1:
            return 0.0
        return self.bytes(summed, told) / (_REACHED * self.network.bandwidth) + collectives * self.network.latency

    def bytes(self, summed: float, told: float) -> float:
        """What passes through the link of one process."""
        return 2.0 * summed * (self.count - 1) / self.count + told if self.count > 1 else 0.0


@cache
def _most(samples: int, batch: int, count: int) -> float:
    """How many samples of a batch are on average of the process that has most of them; the same for all windows."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randperm(samples, generator=generator)[:batch] % count for _ in range(_DRAWS))
    return sum(int(one.bincount().max()) for one in drawn) / _DRAWS
