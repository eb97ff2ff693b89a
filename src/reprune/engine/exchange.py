"""Counts, for a forecast, each process's part of a run's work and what the processes exchange.

Network speeds are those of data sheets, times a share that is an estimate and has not been compared with real runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import torch

from reprune.engine.footprint import levels, measured
from reprune.engine.group_statistics import gatherings, gathers, passes
from reprune.engine.work import Group, Work
from reprune.errors import InputError
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window

_REACHED = 0.7  # of a network's peak bandwidth
_DRAWS = 200  # random batches by which to estimate how unevenly samples fall to the processes


@final
@dataclass(frozen=True)
class Network:
    """A network over which processes exchange sums and weights."""

    name: str
    bandwidth: float  # peak, bytes per second that one process sends
    latency: float  # seconds per collective, whatever its size


NVLINK = "nvlink"
NETWORKS = {
    "local": Network("the memory of one machine", 4e8, 5e-4),
    NVLINK: Network("NVLink of H100", 450e9, 3e-5),
    "100g": Network("100 Gbit/s between machines", 12.5e9, 1e-4),
}
"""NVLink: NVIDIA's data sheet, one direction. local: gloo on two cores, waiting included (docs/distributed.md)."""


def find_network(name: str) -> Network:
    """The network of this name; raises `InputError` if there is none."""
    if name not in NETWORKS:
        raise InputError(f"--network {name}: expected one of {', '.join(NETWORKS)}.")
    return NETWORKS[name]


@final
@dataclass(frozen=True)
class Crew:
    """The processes of a run, and the network between them."""

    count: int = 1
    network: Network = NETWORKS["local"]

    def part(self, samples: int) -> int:
        """How many of these samples the process with the most of them has."""
        return -(-samples // self.count)

    def per_epoch(self, samples: int, batch_size: int) -> float:
        """The samples of an epoch, each batch counted by the process that has most of it: the others wait for it."""
        batch = min(batch_size, samples)
        return float(samples) if self.count == 1 else _most(samples, batch, self.count) * samples / batch

    def longest(self, seconds: Sequence[float]) -> float:
        """Seconds until all jobs are done, if they are dealt out to the processes in turn."""
        return max(sum(seconds[first :: self.count]) for first in range(self.count))

    def seconds(self, summed: float, told: float, collectives: int) -> float:
        """Seconds that an exchange takes."""
        if self.count == 1:
            return 0.0
        return self.bytes(summed, told) / (_REACHED * self.network.bandwidth) + collectives * self.network.latency

    def bytes(self, summed: float, told: float) -> float:
        """Bytes through the link of one process, which sends nearly twice what is summed (a ring all-reduce)."""
        return 2.0 * summed * (self.count - 1) / self.count + told if self.count > 1 else 0.0


@cache
def _most(samples: int, batch: int, count: int) -> float:
    """The mean number of a batch's samples that belong to the process with the most of them."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randperm(samples, generator=generator)[:batch] % count for _ in range(_DRAWS))
    return sum(int(one.bincount().max()) for one in drawn) / _DRAWS


Exchange = tuple[float, float, int]
"""Bytes summed over all processes, bytes that one process sends to the others, and the number of collectives."""


def exchanges(recipe: Recipe, work: Work) -> list[Exchange]:
    """What the processes exchange in each window, and in allocation and distillation if there are any."""
    found = [_in_window(recipe, work, window) for window in work.schedule]
    if recipe.allocation.name != "uniform":
        found += [_in_pruning(measured(recipe), groups, levels(recipe)) for groups in work.groups]
    if recipe.distill.blocks:
        blocks = range(len(work.blocks) - recipe.distill.blocks, len(work.blocks))
        summed, told, often = _in_descent(recipe, work, blocks, recipe.distill.epochs_beside(recipe.solver))
        found.append((summed, told + sum(work.block_bytes[index] for index in blocks), often))
    return found


def planned_epochs(recipe: Recipe, work: Work, window: Window) -> int:
    """How many epochs a window takes if it does not stop early; none if it has no error."""
    return recipe.planned_epochs(len(window.blocks)) if work.errs(window, recipe.teacher == "local") else 0


def _in_window(recipe: Recipe, work: Work, window: Window) -> Exchange:
    fresh = [group for index in window.fresh for group in work.groups[index]]
    epochs = planned_epochs(recipe, work, window)
    summed, told, often = _in_pruning(recipe, fresh)
    then_summed, then_told, then_often = _in_descent(recipe, work, window.blocks, epochs)
    return summed + then_summed, told + then_told, often + then_often


def _in_pruning(recipe: Recipe, groups: Sequence[Group], times: int = 1) -> Exchange:
    """What is exchanged while groups are pruned `times` times by statistics of the same inputs."""
    summed = told = 0.0
    refit = recipe.solver.start == "least-squares"
    pruner = recipe.build_pruner()
    size, again = gathers(pruner).size, gatherings(len(passes(groups, pruner)), times)
    for group in groups:
        summed += 16 * group.columns**2 if refit and not group.expert else again * size(group.columns)
        told += times * 5 * group.rows * group.columns  # weights and masks
    return summed, told, 4 * max(times, 1) * len(groups)


def _in_descent(recipe: Recipe, work: Work, blocks: Sequence[int], epochs: int) -> Exchange:
    """What is exchanged while blocks are fitted and when all ranks take the first rank's weights at the end."""
    taken = recipe.solver.steps(work.calibration, epochs)
    return taken * 4 * _moved(recipe, work, blocks), 4 * work.parameters(blocks), 2 * taken + 2 * epochs


def _moved(recipe: Recipe, work: Work, blocks: Sequence[int]) -> float:
    """How many numbers a step updates, each by its gradient (see `math.coordinates`)."""
    parameters = work.parameters(blocks)
    if (rank := recipe.solver.rank) is not None:
        groups = [group for index in blocks for group in work.groups[index]]
        factors = [rank * (group.rows + group.matrices * group.columns) for group in groups]
        saved = [group.rows * group.columns - moved for group, moved in zip(groups, factors, strict=True)]
        return parameters - sum(max(numbers, 0) for numbers in saved)
    return parameters * (1.0 - recipe.pattern.sparsity if recipe.solver.compact else 1.0)
