"""What a run will take, before it begins: seconds, peak memory, disk. From what a block costs and what the loop does.

The loop's work is counted: passes of samples through blocks, Gram matrices, factorizations, gradient steps. What the
machine does in a second is measured in a moment. The constants below join the two; `docs/results.md` says how far they
were off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from reprune.engine.exchange import Crew
from reprune.engine.pruning import AT_ONCE
from reprune.engine.speed import Speed
from reprune.model.costs import BlockCosts
from reprune.model.predictor import LOGITS
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window

_TRAFFIC_FORWARD, _TRAFFIC_BOTH = 2.0, 6.0
"""Bytes that a pass moves beside its products, over those of the activations it would keep."""
_SYMMETRIC = 0.625  # of a product that is symmetric: what of it is computed
_MASKS = 0.25  # of the weights' bytes
_COLUMN_SECONDS = 3e-5  # of SparseGPT, for each column of a group, whatever its rows
_FILE_BYTES_PER_SECOND = 4e8  # of a block's shard, read, rounded, written and forced to disk
_COPIED_BYTES_PER_SECOND = 6e8  # of what lies outside the blocks, which is written as it was
_WINDOW_SECONDS = 0.05
_BESIDE_BYTES = 90e6  # of a run beside what is counted here: the tokenizer, the samples, thread pools
_HEAP = 1.1  # what the heap takes over what was asked of it
_REFIT_COPIES = 7  # of a group's matrices: what conjugate gradients hold beside what the pruner does
ONE_PROCESS = Crew()
_DIVERGENCE_FORWARD, _DIVERGENCE_BOTH = 10, 15
"""How many times logits are read or written to compare them, and to find their gradient too."""
_HEAD_SPEED = 0.5  # of the head's products, over those of others: a matrix of hundreds of megabytes for few tokens
_LOGITS_HELD = 5  # tensors of their size at a time
_TEMPORARY = 1.3  # over the activations kept: what a backward pass holds for a moment


@dataclass(frozen=True)
class Group:
    """A linear group: rows of all its matrices together, and columns."""

    rows: int
    columns: int
    share: float = 1.0  # of the tokens, how many reach it
    expert: bool = False

    @staticmethod
    def of(shapes: Iterable[tuple[int, int]], share: float | None = None) -> Group:
        """The group of matrices of these shapes, which have their columns in common.

        `share` is that of the tokens which reach it, of an expert.
        """
        each = list(shapes)
        rows = sum(rows for rows, _ in each)
        return Group(rows, each[0][1]) if share is None else Group(rows, each[0][1], share, True)


@dataclass(frozen=True)
class Work:
    """What a run is to do, in numbers."""

    blocks: Sequence[BlockCosts]
    groups: Sequence[Sequence[Group]]  # of each block
    schedule: Sequence[Window]
    calibration: int
    heldout: int
    tokens: int  # a sample
    block_bytes: Sequence[int]  # of each block's tensors on disk
    outside_bytes: Sequence[int]  # of each tensor outside the blocks
    head: tuple[int, int] = (0, 0)  # words and hidden size of what makes the logits


@final
@dataclass(frozen=True)
class Forecast:
    """Estimates."""

    seconds: float
    memory_bytes: int  # of the host; with a GPU, that of the streams and of what is written
    device_bytes: int  # of the GPU; 0 where there is none
    disk_bytes: int  # the result, and streams that do not fit memory
    exchanged_bytes: int = 0  # through the link of each process, where there are several


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
    exchanges = [_exchange(recipe, work, window) for window in work.schedule]
    seconds = sum(_window_seconds(recipe, work, speed, window, crew) for window in work.schedule)
    seconds += sum(crew.seconds(*exchange) for exchange in exchanges)
    seconds += sum(work.outside_bytes) / _COPIED_BYTES_PER_SECOND
    samples = crew.part(work.calibration) + crew.part(work.heldout)
    stream = samples * work.blocks[0].states
    wanted = stream * _streams(recipe)
    held = min(wanted, int(recipe.streams.memory) // stream * stream)
    window = max(_window_bytes(recipe, work, one) for one in work.schedule)
    if recipe.distill.blocks:
        seconds += _distilling_seconds(recipe, work, speed, crew)
        window = max(window, _distilling_bytes(recipe, work))
    writing = max((*work.outside_bytes, *work.block_bytes))  # a tensor at a time, mapped from the checkpoint
    on_device = _on_gpu(recipe)
    host = base_bytes + _BESIDE_BYTES + max(_HEAP * (held + (0 if on_device else window)), writing, writer_bytes)
    disk = disk_bytes(recipe, stream, sum(work.block_bytes) + sum(work.outside_bytes))
    exchanged = sum(crew.bytes(summed, told) for summed, told, _ in exchanges)
    return Forecast(seconds, int(host), int(max(window, writer_bytes)) if on_device else 0, int(disk), int(exchanged))


def _exchange(recipe: Recipe, work: Work, window: Window) -> tuple[float, float, int]:
    """What processes exchange in a window: bytes summed over all, bytes that one tells the others, and how often."""
    summed = told = 0.0
    often = 0
    refit = recipe.solver.start == "least-squares"
    for group in (group for index in window.fresh for group in work.groups[index]):
        if recipe.pruner.name == "sparsegpt" or refit:
            summed += 4 * group.columns**2 * (4 if refit and not group.expert else 1)
        elif recipe.pruner.name == "wanda":
            summed += 4 * group.columns
        told += 5 * group.rows * group.columns  # weights and masks
        often += 4
    parameters = sum(work.blocks[index].parameters for index in window.blocks)
    if recipe.solver.name != "none":
        steps = _steps(recipe, work, recipe.solver.epochs)
        summed += steps * 4 * parameters * (1.0 - recipe.pattern.sparsity if recipe.solver.compact else 1.0)
        often += 2 * steps + 2 * recipe.solver.epochs
    return summed, told + 4 * parameters, often


def least_memory_bytes(recipe: Recipe, schedule: Sequence[Window], parameters: Sequence[int]) -> int:
    """What the largest window, or distillation, takes at the least: its weights, in as many copies as they are held in.

    Args:
        recipe: settled.
        schedule: its windows.
        parameters: how many each block has.
    """
    most = max(sum(parameters[index] for index in window.blocks) for window in schedule)
    windows = most * (_copies(recipe) if recipe.solver.name != "none" else 1.0)
    return int(4 * max(windows, sum(parameters[len(parameters) - recipe.distill.blocks :]) * _copies(recipe)))


def disk_bytes(recipe: Recipe, stream: int, files: int) -> int:
    """What a run writes.

    Args:
        recipe: settled.
        stream: bytes of one stream of all samples.
        files: of the model's tensors.
    """
    wanted = stream * _streams(recipe)
    return files + wanted - min(wanted, int(recipe.streams.memory) // stream * stream)


def _streams(recipe: Recipe) -> int:
    """How many streams there are at most: the student's, the dense ones that a window looks back on, and targets."""
    size = recipe.schedule.size
    return 1 + (size + 1) + (recipe.teacher == "local") + (size > 1) + 2 * (recipe.distill.blocks > 0)


def _steps(recipe: Recipe, work: Work, epochs: int) -> int:
    """How many a descent of so many epochs takes."""
    return -(-work.calibration // recipe.solver.batch_size) * epochs


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
    return seconds + _steps(recipe, work, epochs) * 4 * parameters * 9 / passes.speed.traffic


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


def _distilling_bytes(recipe: Recipe, work: Work) -> int:
    """The most that it holds at a time, without streams."""
    costs = work.blocks[len(work.blocks) - recipe.distill.blocks :]
    words, hidden = work.head
    at_a_time = min(recipe.solver.samples_at_a_time, work.calibration)
    kept = _kept_bytes(recipe, costs)
    weights = _copies(recipe) * 4 * sum(cost.parameters for cost in costs)
    logits = min(4 * LOGITS, 4 * words * work.tokens * at_a_time) * _LOGITS_HELD
    return int(weights + 4 * words * hidden + max(at_a_time * kept + logits, _TEMPORARY * at_a_time * kept))


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
        seconds += _descent_seconds(recipe, passes, blocks, solver.epochs, crew)
    seconds += samples * forward(window.blocks)  # advancing, with the errors after
    # Blocks that later windows go on with are kept as they are, float32 with their masks.
    left_open = sum(work.blocks[i].parameters for i in window.blocks if i not in window.retired)
    written = sum(work.block_bytes[i] for i in window.retired) + 4 * (1.0 + _MASKS) * left_open
    return seconds + written / _FILE_BYTES_PER_SECOND


def _pruning_seconds(
    recipe: Recipe, work: Work, speed: Speed, index: int, forward: float, lone: bool, crew: Crew
) -> float:
    """Statistics of the calibration samples, the pruner, and least squares, of a block alone in its window or not."""
    calibration, heldout = crew.part(work.calibration), crew.part(work.heldout)
    samples = calibration + heldout
    groups = work.groups[index]
    routed = any(group.expert for group in groups)
    plain = sum(not group.expert for group in groups)
    refit = recipe.solver.start == "least-squares"
    seconds = (min(recipe.solver.samples_at_a_time, calibration) if routed else 1) * forward  # which share inputs
    if refit:  # each group is reached in both models; on average that is half of a pass
        seconds += samples * forward * (plain + 2 * routed)
    elif routed or not recipe.pruner.build().data_free:
        if recipe.pruner.sequential:  # each group is reached
            seconds += calibration * forward * (plain / 2 + 2 * routed)
        elif recipe.teacher == "global" or not lone:  # else they are gathered in the pass that makes the targets
            seconds += calibration * forward
    solving = []  # of each group, by one process
    for group in groups:
        square = group.columns**2
        if recipe.pruner.name == "sparsegpt":
            seconds += 2.0 * _SYMMETRIC * calibration * work.tokens * group.share * square / speed.full
            solving.append(
                group.columns**3 * 1.5 / speed.full
                + 1.0 * group.rows * square / speed.full
                + group.columns * _COLUMN_SECONDS
            )
        if refit and not group.expert:
            gram = heldout if recipe.pruner.name == "sparsegpt" else samples
            seconds += 2.0 * (_SYMMETRIC * gram + samples) * work.tokens * square / speed.full
            seconds += 24 * 2.0 * group.rows * square / speed.full  # products of the conjugate gradients
    # One after the other where each group is to see what those before it have become.
    in_turn = refit or recipe.pruner.sequential
    return seconds + (sum(solving) if in_turn else crew.longest(solving))


def _window_bytes(recipe: Recipe, work: Work, window: Window) -> int:
    """The most that a window holds at a time, without streams."""
    solver = recipe.solver
    weights = 4 * sum(work.blocks[i].parameters for i in window.blocks)
    largest = max(work.blocks[i].activations for i in window.blocks)
    at_a_time = min(solver.samples_at_a_time, work.calibration)
    passing = at_a_time * largest  # a pass without gradients holds no more than what it would keep
    grams = recipe.pruner.name == "sparsegpt"  # of all groups of a block at once
    pruning = max(
        grams * _gram_bytes(work.groups[i])
        + max((4 * (2 * group.columns**2 + 4 * group.rows * group.columns) for group in work.groups[i]), default=0)
        for i in window.blocks
    )
    twin = 0
    if solver.start == "least-squares":
        twin = 4 * max(work.blocks[i].parameters for i in window.fresh or window.blocks)
        every = [group for i in window.blocks for group in work.groups[i]]
        pruning += 16 * max((group.columns**2 for group in every), default=0)  # both Gram pairs
        pruning += _REFIT_COPIES * 4 * max((group.rows * group.columns for group in every), default=0)
    most = weights + twin + max(pruning, passing)
    if solver.name != "none":
        most = max(most, _fitting_bytes(recipe, weights, [work.blocks[i] for i in window.blocks], at_a_time))
    return int(most)


def _fitting_bytes(recipe: Recipe, weights: int, costs: Sequence[BlockCosts], at_a_time: int) -> float:
    """The most while blocks of so many bytes of weights are fitted."""
    held, kept = _copies(recipe) * weights, at_a_time * _kept_bytes(recipe, costs)
    passing = (_TEMPORARY - 1.0) * at_a_time * max(cost.activations for cost in costs)
    if not _on_gpu(recipe):  # gradients come as activations go, but a heap has seldom room for the ones in the others'
        return held + kept + passing
    return max(held, held - _gradients(recipe) * weights + kept) + passing


def _kept_bytes(recipe: Recipe, costs: Sequence[BlockCosts]) -> float:
    """What a sample's pass through blocks keeps for its gradients."""
    if recipe.solver.checkpointing:
        return max(cost.activations for cost in costs) + sum(cost.states for cost in costs)
    return sum(cost.activations for cost in costs)


def _gram_bytes(groups: Sequence[Group]) -> int:
    """Of all groups of a block at once, of experts as many as are gathered in one pass."""
    experts = sum(4 * group.columns**2 for group in groups if group.expert)
    return sum(4 * group.columns**2 for group in groups if not group.expert) + min(experts, AT_ONCE)


def _copies(recipe: Recipe) -> float:
    """How many times a window's weights are held in one form or another while they are fitted."""
    if recipe.solver.rank is not None:
        return 2.0
    kept = 1.0 - recipe.pattern.sparsity
    moved, moments = _gradients(recipe), 2.0
    if recipe.solver.compact:
        return 1.0 + _MASKS + moved + kept * (1.0 + moments + recipe.guard)
    best = kept if _on_gpu(recipe) else 1.0
    return 1.0 + _MASKS + moved + moments + best * recipe.guard


def _gradients(recipe: Recipe) -> float:
    """The same of their gradients alone."""
    if recipe.solver.rank is not None:
        return 0.0
    return 1.0 - recipe.pattern.sparsity if recipe.solver.compact else 1.0


def _on_gpu(recipe: Recipe) -> bool:
    return recipe.device.startswith("cuda")
