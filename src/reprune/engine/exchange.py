"""What each of several processes does of a run, and what they exchange: counted for a forecast.

What networks do is from data sheets, and a share of it that is an estimate; no run on them has been held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import torch

from reprune.engine.footprint import levels, measured
from reprune.engine.group_statistics import gathers
from reprune.engine.work import Group, Work
from reprune.errors import InputError
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window

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
        """How long an exchange takes."""
        if self.count == 1:
            return 0.0
        return self.bytes(summed, told) / (_REACHED * self.network.bandwidth) + collectives * self.network.latency

    def bytes(self, summed: float, told: float) -> float:
        """What passes through the link of one process: what is summed over all each sends nearly twice."""
        return 2.0 * summed * (self.count - 1) / self.count + told if self.count > 1 else 0.0


@cache
def _most(samples: int, batch: int, count: int) -> float:
    """How many samples of a batch are on average of the process that has most of them; the same for all windows."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randperm(samples, generator=generator)[:batch] % count for _ in range(_DRAWS))
    return sum(int(one.bincount().max()) for one in drawn) / _DRAWS


Exchange = tuple[float, float, int]
"""Bytes summed over all processes, bytes that one tells the others, and how often."""


def exchanges(recipe: Recipe, work: Work) -> list[Exchange]:
    """What processes exchange: in each window, and in the steps before and after them."""
    found = [_in_window(recipe, work, window) for window in work.schedule]
    if recipe.allocation.name != "uniform":
        found += [_in_pruning(measured(recipe), groups, levels(recipe)) for groups in work.groups]
    if recipe.distill.blocks:
        blocks = range(len(work.blocks) - recipe.distill.blocks, len(work.blocks))
        summed, told, often = _in_descent(recipe, work, blocks, recipe.distill.epochs_beside(recipe.solver))
        found.append((summed, told + sum(work.block_bytes[index] for index in blocks), often))
    return found


def steps(recipe: Recipe, work: Work, epochs: int) -> int:
    """How many a descent of so many epochs takes."""
    return -(-work.calibration // recipe.solver.batch_size) * epochs


def _in_window(recipe: Recipe, work: Work, window: Window) -> Exchange:
    fresh = [group for index in window.fresh for group in work.groups[index]]
    epochs = recipe.planned_epochs(len(window.blocks))
    summed, told, often = _in_pruning(recipe, fresh)
    then_summed, then_told, then_often = _in_descent(recipe, work, window.blocks, epochs)
    return summed + then_summed, told + then_told, often + then_often


def _in_pruning(recipe: Recipe, groups: Sequence[Group], times: int = 1) -> Exchange:
    """In pruning groups so many times by the same statistics."""
    summed = told = 0.0
    refit = recipe.solver.start == "least-squares"
    size = gathers(recipe.pruner.build()).size
    for group in groups:
        summed += 16 * group.columns**2 if refit and not group.expert else size(group.columns)
        told += times * 5 * group.rows * group.columns  # weights and masks
    return summed, told, 4 * max(times, 1) * len(groups)


def _in_descent(recipe: Recipe, work: Work, blocks: Sequence[int], epochs: int) -> Exchange:
    """In fitting blocks for so many epochs, after which all take the weights of the first."""
    taken = steps(recipe, work, epochs)
    return taken * 4 * _moved(recipe, work, blocks), 4 * work.parameters(blocks), 2 * taken + 2 * epochs


def _moved(recipe: Recipe, work: Work, blocks: Sequence[int]) -> float:
    """How many numbers a step moves, each with its gradient (`math.coordinates`)."""
    parameters = work.parameters(blocks)
    if (rank := recipe.solver.rank) is not None:
        groups = [group for index in blocks for group in work.groups[index]]
        factors = [rank * (group.rows + group.matrices * group.columns) for group in groups]
        saved = [group.rows * group.columns - moved for group, moved in zip(groups, factors, strict=True)]
        return parameters - sum(max(numbers, 0) for numbers in saved)
    return parameters * (1.0 - recipe.pattern.sparsity if recipe.solver.compact else 1.0)
