"""What a run will take, before it begins: seconds, peak memory, disk. From what a block costs and what the loop does.

The loop's work is counted: passes of samples through blocks, Gram matrices, factorizations, gradient steps. What the
machine does in a second is measured in a moment. The constants below join the two; `docs/results.md` says how far they
were off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from reprune.engine.exchange import Crew, exchanges, steps
from reprune.engine.footprint import (
    LEVELS,
    MASKS,
    allocating_bytes,
    disk_bytes,
    distilling_bytes,
    held_bytes,
    measured,
    on_gpu,
    window_bytes,
)
from reprune.engine.pruning import gathers
from reprune.engine.speed import Speed
from reprune.engine.work import Work
from reprune.math.statistics import Gram
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window

_TRAFFIC_FORWARD, _TRAFFIC_BOTH = 2.0, 6.0
"""Bytes that a pass moves beside its products, over those of the activations it would keep."""
_SYMMETRIC = 0.625  # of a product that is symmetric: what of it is computed
_COLUMN_SECONDS = 3e-5  # of SparseGPT, for each column of a group, whatever its rows
_FILE_BYTES_PER_SECOND = 4e8  # of a block's shard, read, rounded, written and forced to disk
_COPIED_BYTES_PER_SECOND = 6e8  # of what lies outside the blocks, which is written as it was
_WINDOW_SECONDS = 0.05
_BESIDE_BYTES = 90e6  # of a run beside what is counted here: the tokenizer, the samples, thread pools
_HEAP = 1.1  # what the heap takes over what was asked of it
ONE_PROCESS = Crew()
_DIVERGENCE_FORWARD, _DIVERGENCE_BOTH = 10, 15
"""How many times logits are read or written to compare them, and to find their gradient too."""
_HEAD_SPEED = 0.5  # of the head's products, over those of others: a matrix of hundreds of megabytes for few tokens


@final
@dataclass(frozen=True)
class Forecast:
    """Estimates."""

    seconds: float
    memory_bytes: int  # of the host; with a GPU, that of the streams and of what is written
    device_bytes: int  # of the GPU; 0 where there is none
    disk_bytes: int  # the result, and streams that do not fit memory
    exchanged_bytes: int  # through the link of each process, where there are several


def forecast(
    recipe: Recipe, work: Work, speed: Speed, base_bytes: int, crew: Crew = ONE_PROCESS, writer_bytes: int = 0
) -> Forecast:
    """Estimate a run; of several processes time and memory are those of the first, which writes.

    Args:
        recipe: settled.
        work: what it comes to.
        speed: of its device.
        base_bytes: what a process takes that has only loaded its libraries.
        crew: the processes that do it.
        writer_bytes: of the whole model, where it writes texts before; how long that takes is not known.
    """
    exchanged = exchanges(recipe, work)
    seconds = sum(_window_seconds(recipe, work, speed, window, crew) for window in work.schedule)
    seconds += sum(crew.seconds(*exchange) for exchange in exchanged)
    seconds += sum(work.outside_bytes) / _COPIED_BYTES_PER_SECOND
    samples = crew.part(work.calibration) + crew.part(work.heldout)
    stream = samples * work.blocks[0].states
    held = held_bytes(recipe, len(work.blocks), stream)
    window = max(window_bytes(recipe, work, one) for one in work.schedule)
    if recipe.allocation.name != "uniform":
        seconds += _allocating_seconds(recipe, work, speed, crew)
        window = max(window, allocating_bytes(recipe, work))
    if recipe.distill.blocks:
        seconds += _distilling_seconds(recipe, work, speed, crew)
        window = max(window, distilling_bytes(recipe, work))
    writing = max((*work.outside_bytes, *work.block_bytes))  # a tensor at a time, mapped from the checkpoint
    on_device = on_gpu(recipe)
    host = base_bytes + _BESIDE_BYTES + max(_HEAP * (held + (0 if on_device else window)), writing, writer_bytes)
    disk = disk_bytes(recipe, len(work.blocks), stream, sum(work.block_bytes) + sum(work.outside_bytes))
    sent = sum(crew.bytes(summed, told) for summed, told, _ in exchanged)
    return Forecast(seconds, int(host), int(max(window, writer_bytes)) if on_device else 0, int(disk), int(sent))


@final
@dataclass(frozen=True)
class _Passes:
    """Seconds of what one sample goes through."""

    work: Work
    speed: Speed

    @property
    def _crossing(self) -> float:
        """Of a pass: what enters it, and what comes out or should."""
        return 2.0 * self.work.blocks[0].states / self.speed.link

    def forward(self, blocks: Sequence[int]) -> float:
        """Through blocks."""
        costs = [self.work.blocks[i] for i in blocks]
        return (self._crossing if blocks else 0.0) + sum(
            self.speed.seconds(cost.forward) + _TRAFFIC_FORWARD * cost.activations / self.speed.traffic
            for cost in costs
        )

    def both(self, blocks: Sequence[int]) -> float:
        """Through blocks, and their gradients back."""
        costs = [self.work.blocks[i] for i in blocks]
        return self._crossing + sum(
            self.speed.seconds(cost.both) + _TRAFFIC_BOTH * cost.activations / self.speed.traffic for cost in costs
        )

    def head(self, products: int, logits: int) -> float:
        """So many products of the head, and so many times its logits read or written."""
        words, hidden = self.work.head
        flops, bytes_ = 2.0 * words * hidden * products / _HEAD_SPEED, 4.0 * words * logits
        return self.work.tokens * (flops / self.speed.products + bytes_ / self.speed.traffic)


def _descent_seconds(
    recipe: Recipe,
    passes: _Passes,
    blocks: Sequence[int],
    epochs: int,
    crew: Crew,
    comparing: float = 0.0,
    differentiating: float = 0.0,
) -> float:
    """Of epochs of Adam over blocks, each with the held-out error after it.

    `comparing` is what a sample's error takes beside its pass, `differentiating` its loss and that one's gradient.
    """
    work, solver = passes.work, recipe.solver
    once = passes.forward(blocks)
    step = passes.both(blocks) + (once if solver.checkpointing else 0.0) + differentiating
    in_steps = crew.per_epoch(work.calibration, solver.batch_size)
    seconds = epochs * (in_steps * step + crew.part(work.heldout) * (once + comparing))
    parameters = sum(work.blocks[i].parameters for i in blocks)
    # Adam reads and writes weights, gradients and moments.
    return seconds + steps(recipe, work, epochs) * 4 * parameters * 9 / passes.speed.traffic


def _distilling_seconds(recipe: Recipe, work: Work, speed: Speed, crew: Crew) -> float:
    """Of fitting the last blocks to the dense model's predictions."""
    blocks = range(len(work.blocks) - recipe.distill.blocks, len(work.blocks))
    calibration, heldout = crew.part(work.calibration), crew.part(work.heldout)
    passes, epochs = _Passes(work, speed), recipe.distill.epochs_beside(recipe.solver)
    once, comparing = passes.forward(blocks), passes.head(2, _DIVERGENCE_FORWARD)
    seconds = 2 * heldout * (once + comparing)  # the errors before, and after rounding
    seconds += _descent_seconds(recipe, passes, blocks, epochs, crew, comparing, passes.head(3, _DIVERGENCE_BOTH))
    seconds += (calibration + heldout) * 2 * once  # the errors after, of each block
    return seconds + sum(work.block_bytes[i] for i in blocks) / _FILE_BYTES_PER_SECOND


def _allocating_seconds(recipe: Recipe, work: Work, speed: Speed, crew: Crew) -> float:
    """Of measuring what each block bears: a walk through the dense model, and each block pruned to some levels."""
    samples, heldout = crew.part(work.calibration) + crew.part(work.heldout), crew.part(work.heldout)
    levels = LEVELS if recipe.allocation.name == "by-error" else 0
    passes, alone, seconds = _Passes(work, speed), measured(recipe), 0.0
    for index in range(len(work.blocks)):
        once = passes.forward([index])
        seconds += (samples + levels * heldout) * once
        seconds += _pruning_seconds(alone, work, speed, index, once, False, crew, levels)
    return seconds


def _window_seconds(recipe: Recipe, work: Work, speed: Speed, window: Window, crew: Crew) -> float:
    calibration, heldout = crew.part(work.calibration), crew.part(work.heldout)
    samples = calibration + heldout
    passes = _Passes(work, speed)
    forward = passes.forward

    seconds = _WINDOW_SECONDS + samples * forward(window.fresh)  # the dense stream
    if recipe.teacher == "local":
        seconds += samples * forward(window.blocks)
    for index in window.fresh:
        if index > window.fresh.start:  # what enters the first is at hand
            seconds += samples * forward([i for i in window.blocks if i < index])
        seconds += _pruning_seconds(recipe, work, speed, index, forward([index]), len(window.blocks) == 1, crew)
    solver = recipe.solver
    if solver.name != "none":
        blocks = list(window.blocks)
        seconds += samples * forward(blocks[-1:] if window.fresh else blocks)  # the errors before
        epochs = solver.build(recipe.guard).planned(len(blocks))
        seconds += _descent_seconds(recipe, passes, blocks, epochs, crew)
    seconds += samples * forward(window.blocks)  # advancing, with the errors after
    # Blocks that later windows go on with are kept as they are, float32 with their masks.
    left_open = sum(work.blocks[i].parameters for i in window.blocks if i not in window.retired)
    written = sum(work.block_bytes[i] for i in window.retired) + 4 * (1.0 + MASKS) * left_open
    return seconds + written / _FILE_BYTES_PER_SECOND


def _pruning_seconds(
    recipe: Recipe, work: Work, speed: Speed, index: int, forward: float, lone: bool, crew: Crew, times: int = 1
) -> float:
    """Statistics of the calibration samples, the pruner, and least squares, of a block alone in its window or not.

    It may be pruned several times by the same statistics.
    """
    calibration, heldout = crew.part(work.calibration), crew.part(work.heldout)
    samples = calibration + heldout
    groups = work.groups[index]
    routed = any(group.expert for group in groups)
    plain = sum(not group.expert for group in groups)
    refit = recipe.solver.start == "least-squares"
    pruner = recipe.pruner.build()
    grams = gathers(pruner) is Gram
    seconds = (min(recipe.solver.samples_at_a_time, calibration) if routed else 1) * forward  # which share inputs
    if refit:  # each group is reached in both models; on average that is half of a pass
        seconds += samples * forward * (plain + 2 * routed)
    elif routed or not pruner.data_free:
        if recipe.pruner.sequential:  # each group is reached
            seconds += calibration * forward * (plain / 2 + 2 * routed)
        elif recipe.teacher == "global" or not lone:  # else they are gathered in the pass that makes the targets
            seconds += calibration * forward
    solving = []  # of each group, by one process
    for group in groups:
        square = group.columns**2
        if grams:  # and solves by them as SparseGPT does
            seconds += 2.0 * _SYMMETRIC * calibration * work.tokens * group.share * square / speed.full
            solving.append(
                group.columns**3 * 1.5 / speed.full
                + 1.0 * group.rows * square / speed.full
                + group.columns * _COLUMN_SECONDS
            )
        if refit and not group.expert:
            gram = heldout if grams else samples
            seconds += 2.0 * (_SYMMETRIC * gram + samples) * work.tokens * square / speed.full
            seconds += 24 * 2.0 * group.rows * square / speed.full  # products of the conjugate gradients
    # One after the other where each group is to see what those before it have become.
    in_turn = refit or recipe.pruner.sequential
    return seconds + times * (sum(solving) if in_turn else crew.longest(solving))
