"""Forecasts a run's time, peak memory and disk space before it begins, from each block's costs and the loop's work.

The loop's work is counted: passes of samples through blocks, Gram matrices, factorizations, gradient steps. The
machine's speed is measured in about a second. The constants below join the two;
`docs/measurements/forecasts.md` compares forecasts with real runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from reprune.engine.exchange import Crew, exchanges, planned_epochs
from reprune.engine.footprint import (
    MASKS,
    allocating_bytes,
    disk_bytes,
    distilling_bytes,
    held_bytes,
    levels,
    measured,
    on_gpu,
    pinned_bytes,
    window_bytes,
)
from reprune.engine.group_statistics import gatherings, gathers, passes
from reprune.engine.speed import Speed
from reprune.engine.work import Group, Work
from reprune.math.pruner import Pruner
from reprune.math.sparsegpt import SparseGPT
from reprune.math.statistics import Gram
from reprune.math.weight_update import WeightUpdate
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window

_TRAFFIC_FORWARD, _TRAFFIC_BOTH = 2.5, 7.5
"""Bytes that a pass moves outside of matrix products, over the bytes of activations that it would keep."""
_SYMMETRIC = 0.625  # the part of a symmetric product that is computed
_COLUMN_SECONDS = 3e-5  # SparseGPT's overhead per column of a group, whatever the number of rows
_FILE_BYTES_PER_SECOND = 4e8  # a block's shard: read, rounded, written and synced to disk
_COPIED_BYTES_PER_SECOND = 6e8  # tensors outside the blocks, which are copied
_OPERATION_SECONDS = 1e-5
"""A GPU's host begins an operation no sooner: the time of one in a step of a tiny block is 8 to 11 us on a CPU."""
_OF_FORWARD = 1 / 3  # of the operations of a forward and a backward pass
_WORKSPACE_BYTES = 2 * 2**25
"""cuBLAS's on an H100, for the forward and for the backward pass, which is in a thread of its own; others take less."""
_WINDOW_SECONDS = 0.05  # fixed overhead per window
_BESIDE_BYTES = 110e6  # what is not counted here: the tokenizer, the samples, thread pools
_HEAP = 1.1  # what the heap takes from the system, over what was allocated from it
ONE_PROCESS = Crew()
_DIVERGENCE_FORWARD, _DIVERGENCE_BOTH = 10, 15
"""How many times logits are read or written to compare them, without and with their gradient."""
_HEAD_SPEED = 0.5  # the head's products over others' in speed: few tokens times hundreds of megabytes of weights


@final
@dataclass(frozen=True)
class Forecast:
    """Estimates of what a run takes."""

    seconds: float
    memory_bytes: int  # peak on the host; with a GPU, the streams and what is written
    device_bytes: int  # peak on the GPU; 0 without one
    disk_bytes: int  # the result, and streams that do not fit in memory
    exchanged_bytes: int  # through the link of each process; 0 if there is only one


def forecast(
    recipe: Recipe, work: Work, speed: Speed, base_bytes: int, crew: Crew = ONE_PROCESS, writer_bytes: int = 0
) -> Forecast:
    """Estimate a run; with several processes, time and memory are those of the first, which writes.

    Args:
        recipe: settled.
        work: what the recipe amounts to for this model.
        speed: of the run's device.
        base_bytes: memory of a process that has only loaded its libraries.
        crew: the run's processes.
        writer_bytes: memory of the whole model, if it generates texts first; the time of that is not estimated.
    """
    exchanged, estimate = exchanges(recipe, work), _Estimate(recipe, work, speed, crew)
    seconds = sum(estimate.window(window) for window in work.schedule)
    seconds += sum(crew.seconds(*exchange) for exchange in exchanged)
    seconds += sum(work.outside_bytes) / _COPIED_BYTES_PER_SECOND
    stream = estimate.samples * work.blocks[0].states
    own = estimate.samples * work.own
    held = held_bytes(recipe, len(work.blocks), stream, own)
    window = max(window_bytes(recipe, work, one) for one in work.schedule)
    if recipe.allocation.name != "uniform":
        seconds += estimate.allocating()
        window = max(window, allocating_bytes(recipe, work))
    if recipe.distill.blocks:
        seconds += estimate.distilling()
        window = max(window, distilling_bytes(recipe, work))
    writing = max((*work.outside_bytes, *work.block_bytes))  # a tensor at a time, mapped from the checkpoint
    on_device = on_gpu(recipe)
    most = max(_HEAP * (held + (0 if on_device else window)), writing, writer_bytes)
    host = base_bytes + _BESIDE_BYTES + pinned_bytes(recipe, work) + most
    disk = disk_bytes(recipe, len(work.blocks), stream, own, sum(work.block_bytes) + sum(work.outside_bytes))
    sent = sum(crew.bytes(summed, told) for summed, told, _ in exchanged)
    device = _WORKSPACE_BYTES + max(window, writer_bytes) if on_device else 0
    return Forecast(seconds, int(host), int(device), int(disk), int(sent))


@final
@dataclass(frozen=True)
class _Estimate:
    """Seconds of each part of a run, for the process that has the most of it to do."""

    recipe: Recipe
    work: Work
    speed: Speed
    crew: Crew

    @property
    def calibration(self) -> int:
        return self.crew.part(self.work.calibration)

    @property
    def heldout(self) -> int:
        return self.crew.part(self.work.heldout)

    @property
    def samples(self) -> int:
        return self.calibration + self.heldout

    @property
    def _crossing(self) -> float:
        """Seconds to move a sample's states to the device, and its outputs back or its targets there too."""
        return 2.0 * self.work.blocks[0].states / self.speed.link

    def _begun(self, operations: float) -> float:
        """The least seconds of one sample's share of a batch's operations: those to begin them, if on a GPU."""
        at_a_time = min(self.recipe.solver.samples_at_a_time, max(self.calibration, 1))
        return operations * _OPERATION_SECONDS / at_a_time if on_gpu(self.recipe) else 0.0

    def forward(self, blocks: Sequence[int]) -> float:
        """A forward pass of one sample through blocks."""
        costs = [self.work.blocks[i] for i in blocks]
        return (self._crossing if blocks else 0.0) + sum(
            max(
                self.speed.seconds(cost.forward) + _TRAFFIC_FORWARD * cost.activations / self.speed.traffic,
                self._begun(_OF_FORWARD * cost.operations),
            )
            for cost in costs
        )

    def both(self, blocks: Sequence[int]) -> float:
        """A forward and a backward pass of one sample through blocks."""
        costs = [self.work.blocks[i] for i in blocks]
        return self._crossing + sum(
            max(
                self.speed.seconds(cost.both) + _TRAFFIC_BOTH * cost.activations / self.speed.traffic,
                self._begun(cost.operations),
            )
            for cost in costs
        )

    def head(self, products: int, logits: int) -> float:
        """One sample through `products` products with the head, its logits read or written `logits` times."""
        words, hidden = self.work.head
        flops, bytes_ = 2.0 * words * hidden * products / _HEAD_SPEED, 4.0 * words * logits
        return self.work.tokens * (flops / self.speed.products + bytes_ / self.speed.traffic)

    def window(self, window: Window) -> float:
        """A whole window."""
        seconds = _WINDOW_SECONDS + self.samples * self.forward(window.fresh)  # the dense stream
        if self.recipe.teacher == "local":
            seconds += self.samples * self.forward(window.blocks)
        if self.recipe.solver.repeats_routes:  # the dense block's choices of experts are recorded
            routed = [index for index in window.fresh if any(group.expert for group in self.work.groups[index])]
            seconds += sum(self.calibration * self.forward([index]) for index in routed)
        for index in window.fresh:
            if index > window.fresh.start:  # the states that enter the first are already there
                seconds += self.samples * self.forward([i for i in window.blocks if i < index])
            seconds += self.pruning(index, len(window.blocks) == 1)
        if self.recipe.solver.name != "none":
            blocks = list(window.blocks)
            seconds += self.samples * self.forward(blocks[-1:] if window.fresh else blocks)  # the errors before
            seconds += self.descent(blocks, planned_epochs(self.recipe, self.work, window))
        seconds += self.samples * self.forward(window.blocks)  # advancing, with the errors after
        # Blocks that later windows continue with are written in float32, with their masks.
        left_open = self.work.parameters(i for i in window.blocks if i not in window.retired)
        written = sum(self.work.block_bytes[i] for i in window.retired) + 4 * (1.0 + MASKS) * left_open
        return seconds + written / _FILE_BYTES_PER_SECOND

    def allocating(self) -> float:
        """An allocation's walk through the dense model, with each block pruned to some sparsities."""
        times, alone = levels(self.recipe), replace(self, recipe=measured(self.recipe))
        return sum(
            (self.samples + times * self.heldout) * self.forward([index]) + alone.pruning(index, False, times)
            for index in range(len(self.work.blocks))
        )

    def distilling(self) -> float:
        """Fitting the last blocks to the dense model's predictions."""
        distill = self.recipe.distill
        blocks = range(len(self.work.blocks) - distill.blocks, len(self.work.blocks))
        once, comparing = self.forward(blocks), self.head(2, _DIVERGENCE_FORWARD)
        seconds = 2 * self.heldout * (once + comparing)  # the errors before, and after rounding
        epochs = distill.epochs_beside(self.recipe.solver)
        seconds += self.descent(blocks, epochs, comparing, self.head(3, _DIVERGENCE_BOTH))
        seconds += self.samples * 2 * once  # the errors after, of each block
        return seconds + sum(self.work.block_bytes[i] for i in blocks) / _FILE_BYTES_PER_SECOND

    def descent(
        self, blocks: Sequence[int], epochs: int, comparing: float = 0.0, differentiating: float = 0.0
    ) -> float:
        """Epochs of Adam over blocks, each followed by the held-out error.

        `comparing` is what a sample's error takes in addition to its pass, `differentiating` its loss with gradient.
        """
        solver = self.recipe.solver
        once = self.forward(blocks)
        step = self.both(blocks) + (once if solver.checkpointing else 0.0) + differentiating
        in_steps = self.crew.per_epoch(self.work.calibration, solver.batch_size)
        seconds = epochs * (in_steps * step + self.heldout * (once + comparing))
        # Adam reads and writes weights, gradients and moments.
        moved = solver.steps(self.work.calibration, epochs) * 4 * self.work.parameters(blocks) * 9
        return seconds + moved / self.speed.traffic

    def pruning(self, index: int, lone: bool, times: int = 1) -> float:
        """A block's statistics, `times` runs of the pruner by them, and least squares.

        `lone` says whether the block is alone in its window.
        """
        recipe, work, speed = self.recipe, self.work, self.speed
        calibration, samples = self.calibration, self.samples
        groups, forward = work.groups[index], self.forward([index])
        routed = any(group.expert for group in groups)
        plain = [group.stage for group in groups if not group.expert]
        refit = recipe.solver.start == "least-squares"
        pruner = recipe.build_pruner()
        grams = gathers(pruner) is Gram
        seconds = (min(recipe.solver.samples_at_a_time, calibration) if routed else 1) * forward  # to find the groups
        often = len(passes(groups, pruner))  # for the statistics of all experts
        again = gatherings(often, times)
        by_stage = routed * (1 + often)  # experts' two matrices are seen one after the other
        if refit:  # a pass of both models for each group, ended when it is reached: half of each on average
            seconds += forward * (samples * len(plain) + calibration * by_stage)
        elif groups and (routed or not pruner.data_free):
            if recipe.pruner.sequential:  # a pass for each stack, and one for each group, ended when it is reached
                alone, stacks = plain.count(None), len({*plain} - {None})
                seconds += calibration * forward * (by_stage + (0 if pruner.data_free else alone / 2 + stacks))
            elif recipe.teacher == "global" or not lone or often > 1:  # else the pass that makes the targets does
                seconds += calibration * forward * often * again
        solving = []  # of each group, which one process solves
        for group in groups:
            square = group.columns**2
            if grams:
                seconds += again * 2.0 * _SYMMETRIC * calibration * work.tokens * group.share * square / speed.full
                solving.append(_solving(pruner, group, speed))
            if refit and not group.expert:
                gram = self.heldout if grams else samples
                seconds += 2.0 * (_SYMMETRIC * gram + samples) * work.tokens * square / speed.full
                seconds += 24 * 2.0 * group.rows * square / speed.full  # products in conjugate gradients
        # One group after the other if each is to see the pruned weights of those before it.
        in_turn = refit or recipe.pruner.sequential
        return seconds + times * (sum(solving) if in_turn else self.crew.longest(solving))


def _solving(pruner: Pruner[Any], group: Group, speed: Speed) -> float:
    """Seconds that a pruner takes which solves by a group's Gram matrix; all but weight updates as SparseGPT does."""
    square, seconds = group.rows * group.columns**2, 0.0
    if isinstance(pruner, WeightUpdate):
        rate = speed.full if pruner.products == torch.float32 else speed.products
        seconds = (1 + pruner.iterations) * 2.0 * square / rate
        if not isinstance(pruner.masks, SparseGPT):
            return seconds
    return seconds + (1.5 * group.columns**3 + 1.0 * square) / speed.full + group.columns * _COLUMN_SECONDS
