"""Forecasts the bytes that a run holds at a time, in memory and on disk. Knows nothing of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reprune.engine.group_statistics import AT_ONCE, gathers
from reprune.engine.work import Group, Work
from reprune.math.masking import PLACES_BYTES
from reprune.math.weight_update import WeightUpdate
from reprune.model.costs import BlockCosts
from reprune.model.predictor import LOGITS, LOGITS_OF_GPU
from reprune.model.streams import AHEAD
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window, windows

MASKS = 0.25  # bytes of masks (bool) per byte of weights (float32)
_REFIT_COPIES = 7  # copies of a group's matrices that conjugate gradients hold in addition to the pruner's
_UPDATE_COPIES = 4  # the same for a pruner's weight update
_LEVELS = 3  # sparsities to which allocation by error prunes each block
_LOGITS_HELD = 5  # tensors of the logits' size that are held at a time
_PINNED = 2  # batches of states in pinned memory: one is sent to the GPU while the next is gathered
_TEMPORARY = 1.3  # peak of a backward pass, in multiples of the activations kept for it


def least_memory_bytes(recipe: Recipe, schedule: Sequence[Window], parameters: Sequence[int]) -> int:
    """The least that the largest window, or distillation, takes: all copies of its weights that are held at a time.

    `parameters` are each block's number of parameters.
    """
    most = max(sum(parameters[index] for index in window.blocks) for window in schedule)
    windows = most * (_copies(recipe) + _tried(recipe) if recipe.solver.name != "none" else 1.0)
    distilled = sum(parameters[len(parameters) - recipe.distill.blocks :]) * (_copies(recipe) + _gradients(recipe))
    return int(4 * max(windows, distilled))


def disk_bytes(recipe: Recipe, blocks: int, stream: int, own: int, files: int) -> int:
    """What a run takes on disk, given the bytes of one stream of all samples and of the model's tensors.

    `own` are those of what blocks are passed and differs between samples, for all of them.
    """
    return files + own + stream * _streams(recipe, blocks) - held_bytes(recipe, blocks, stream, own)


def held_bytes(recipe: Recipe, blocks: int, stream: int, own: int) -> int:
    """What streams of `stream` bytes each, and samples' own values, take in memory; what does not fit is in files."""
    own = min(own, int(recipe.streams.memory))  # which come first
    return own + min(stream * _streams(recipe, blocks), (int(recipe.streams.memory) - own) // stream * stream)


def pinned_bytes(recipe: Recipe, work: Work) -> int:
    """What states take on the host on their way to a GPU; PyTorch allocates powers of two of it."""
    if not on_gpu(recipe):
        return 0
    batch = min(recipe.solver.samples_at_a_time, work.calibration) * work.blocks[0].states
    return int(_PINNED * 2 ** (batch - 1).bit_length())


def _streams(recipe: Recipe, blocks: int) -> int:
    """How many streams there are at most.

    They are the student's, the dense model's before and after each block of a window, a local teacher's targets, and
    one inside a window of several blocks. An allocation's walk through the dense model holds two in addition to the
    two of the start; distillation keeps two more.
    """
    size = min(recipe.schedule.size, blocks)
    in_windows = 1 + (size + 1) + (recipe.teacher == "local") + (size > 1)
    return max(in_windows, 4 * (recipe.allocation.name != "uniform")) + 2 * (recipe.distill.blocks > 0)


def window_bytes(recipe: Recipe, work: Work, window: Window) -> int:
    """The most that a window holds at a time, not counting streams."""
    solver = recipe.solver
    weights = 4 * work.parameters(window.blocks)
    largest = max(work.blocks[i].activations for i in window.blocks)
    at_a_time = min(solver.samples_at_a_time, work.calibration)
    # A pass without gradients holds no more than one with gradients keeps.
    passing = at_a_time * largest + _sent_bytes(recipe, at_a_time * work.blocks[window.blocks.start].states)
    pruner = recipe.build_pruner()
    size, copies = gathers(pruner).size, 4 + _UPDATE_COPIES * isinstance(pruner, WeightUpdate)
    pruning = max(
        _statistics_bytes(work.groups[i], size)
        + max((4 * (2 * group.columns**2 + copies * group.rows * group.columns) for group in work.groups[i]), default=0)
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


def allocating_bytes(recipe: Recipe, work: Work) -> int:
    """The most held while an allocation measures blocks: a block, for by-error also a dense copy; without streams."""
    alone, twins = measured(recipe), int(levels(recipe) > 0)
    return max(
        window_bytes(alone, work, window) + 4 * twins * work.blocks[window.index].parameters
        for window in windows(len(work.blocks), 1, 1)
    )


def levels(recipe: Recipe) -> int:
    """The number of sparsities to which an allocation prunes each block."""
    return _LEVELS if recipe.allocation.name == "by-error" else 0


def measured(recipe: Recipe) -> Recipe:
    """What an allocation does to each block, as a recipe: prune it by its dense inputs, for OWL by Wanda."""
    pruner = {"name": "wanda", "update": "pruner"} if recipe.allocation.name == "owl" else {}
    return recipe.model_copy(
        update={
            "teacher": "global",
            "pruner": recipe.pruner.model_copy(update={**pruner, "sequential": False}),
            "solver": recipe.solver.model_copy(update={"name": "none", "start": "pruner"}),
        }
    )


def _fitting_bytes(recipe: Recipe, weights: int, costs: Sequence[BlockCosts], at_a_time: int) -> float:
    """The most held while blocks are fitted; `weights` are their weights' bytes."""
    held, kept = _copies(recipe) * weights, at_a_time * _kept_bytes(recipe, costs)
    passing = (_TEMPORARY - 1.0) * at_a_time * max(cost.activations for cost in costs)
    passing += _sent_bytes(recipe, at_a_time * costs[0].states)
    tried = _tried(recipe) * weights
    if not on_gpu(recipe):  # gradients come as activations go, but the heap seldom fits them into the freed memory
        return held + max(kept, tried) + passing
    picking = min(PLACES_BYTES, 2 * weights) if _picks(recipe) else 0  # between backward passes; if compact, in them
    backward = max(held + tried, held - _gradients(recipe) * weights + kept) + passing
    return max(held + picking, backward + picking * recipe.solver.compact)


def distilling_bytes(recipe: Recipe, work: Work) -> int:
    """The most that distillation holds at a time, not counting streams."""
    costs = work.blocks[len(work.blocks) - recipe.distill.blocks :]
    words, hidden = work.head
    head = words * hidden * (2 if recipe.precision in ("bfloat16", "float16") else 4)  # in the products' dtype
    at_a_time = min(recipe.solver.samples_at_a_time, work.calibration)
    kept = _kept_bytes(recipe, costs)
    weights = 4 * sum(cost.parameters for cost in costs)
    most = LOGITS_OF_GPU if on_gpu(recipe) else LOGITS
    logits = min(4 * most, 4 * words * work.tokens * at_a_time) * _LOGITS_HELD
    tried = _gradients(recipe) * weights  # see `_tried`
    passing = max(max(at_a_time * kept, tried) + logits, _TEMPORARY * at_a_time * kept)
    sent = _sent_bytes(recipe, at_a_time * costs[0].states)
    return int(_copies(recipe) * weights + head + passing + sent)


def _sent_bytes(recipe: Recipe, states: int) -> int:
    """The states that a GPU is sent while it computes with those before, for batches of that many bytes."""
    return AHEAD * states if on_gpu(recipe) else 0


def _kept_bytes(recipe: Recipe, costs: Sequence[BlockCosts]) -> float:
    """Bytes that the pass of one sample through blocks keeps for the gradients."""
    if recipe.solver.checkpointing:
        return max(cost.activations for cost in costs) + sum(cost.states for cost in costs)
    return sum(cost.activations for cost in costs)


def _statistics_bytes(groups: Sequence[Group], size: Callable[[int], int]) -> int:
    """Statistics of a block's groups, of experts only as many as one pass gathers; `size` maps columns to bytes."""
    experts = sum(size(group.columns) for group in groups if group.expert)
    return sum(size(group.columns) for group in groups if not group.expert) + min(experts, AT_ONCE)


def _copies(recipe: Recipe) -> float:
    """Weights, masks, gradients, moments and the guard's copy, all held during a fit, in multiples of the weights."""
    if recipe.solver.rank is not None:
        return 2.0
    kept = 1.0 - recipe.pattern.sparsity
    moved, moments = _gradients(recipe), 2.0
    if recipe.solver.compact:
        return 1.0 + MASKS + moved + kept * (1.0 + moments + recipe.guard)
    best = kept if on_gpu(recipe) else 1.0
    return 1.0 + MASKS + moved + moments + best * recipe.guard


def _picks(recipe: Recipe) -> bool:
    """Whether something is held for kept weights alone, which a GPU has to pick from all weights."""
    return recipe.solver.rank is None and (recipe.guard or recipe.solver.compact)


def _gradients(recipe: Recipe) -> float:
    """The bytes of gradients, over those of the window's weights."""
    if recipe.solver.rank is not None:
        return 0.0
    return 1.0 - recipe.pattern.sparsity if recipe.solver.compact else 1.0


def _tried(recipe: Recipe) -> float:
    """The bytes of what a window moves, as it was before a first step that is tried, over those of its weights."""
    return _gradients(recipe) if recipe.solver.name == "widening" else 0.0


def on_gpu(recipe: Recipe) -> bool:
    return recipe.device.startswith("cuda")
