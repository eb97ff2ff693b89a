"""Measures how much pruning each block tolerates, before anything is pruned, and allocates sparsity accordingly.

Every block is measured in the dense model: its inputs are the dense stream.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from reprune.engine.frontier import Frontier
from reprune.engine.group_statistics import Known, gathered
from reprune.engine.pruning import find_groups_, prune_block_
from reprune.engine.watcher import Watcher
from reprune.engine.window import PrunedBlock
from reprune.math.allocation import by_error, by_outliers, outlier_share
from reprune.math.patterns import Unstructured
from reprune.math.pruner import Pruner
from reprune.math.reconstruction_error import ErrorMeter
from reprune.math.wanda import Wanda
from reprune.model.block import Block, many_passes
from reprune.model.decoder import Decoder
from reprune.model.forms import Form
from reprune.model.streams import Stream
from reprune.planning.recipe import Recipe
from reprune.planning.sparsities import Sparsities

_EDGE = 0.01  # measured sparsities stay this far from 0 and 1, or half as far as the target if that is nearer


@torch.no_grad()
def allocate(
    recipe: Recipe, pruner: Pruner[Any], decoder: Decoder, frontier: Frontier, watcher: Watcher
) -> list[float]:
    """The sparsity of each block, by the recipe's allocation. The frontier is at its start, and stays there."""
    weights, outliers, curves = [], [], []

    def dense(index: int) -> Block:
        watcher.phase(None, f"measuring the sensitivity of block {index}")
        return decoder.load(index)

    def measure(block: Block, entering: Stream, after: Stream) -> None:
        pruned = PrunedBlock(block)
        find_groups_(pruned, entering, frontier, recipe.choice)
        linears = (one for group in pruned.groups for one in group.linears)
        own = [one for one in linears if not recipe.sparsities.named(block.index, one.name)]
        weights.append(sum(math.prod(linear.shape) for linear in own))
        if recipe.allocation.name == "owl":
            outliers.append(_outliers(recipe, frontier, pruned, entering))
        else:
            form = decoder.skeleton.forms[block.index]
            curves.append(_curve(recipe, pruner, frontier, pruned, entering, after, form))

    frontier.dense_walk(dense, measure)
    if recipe.allocation.name == "owl":
        return by_outliers(outliers, weights, recipe.pattern.sparsity, recipe.allocation.spread)
    return by_error(curves, weights, recipe.pattern.sparsity)


def _outliers(recipe: Recipe, frontier: Frontier, pruned: PrunedBlock, entering: Stream) -> float:
    """The share of outliers among the Wanda scores of all the linears of a block that are to be pruned."""
    inputs = partial(frontier.inputs, entering, pruned.block)
    statistics = gathered(pruned.block, inputs, pruned.groups, Wanda(), {}, frontier.ranks)
    means = [(found.sums / max(found.tokens, 1)).sqrt() for found in statistics]  # type: ignore[attr-defined]  # Wanda's
    return outlier_share(
        lambda: (
            (linear.matrix(), mean)
            for group, mean in zip(pruned.groups, means, strict=True)
            for linear in group.linears
        ),
        recipe.allocation.outlier,
    )


def _curve(
    recipe: Recipe,
    pruner: Pruner[Any],
    frontier: Frontier,
    pruned: PrunedBlock,
    entering: Stream,
    after: Stream,
    form: Form,
) -> list[tuple[float, float]]:
    """(sparsity, relative held-out error) of a block pruned alone to each level; it is dense again afterwards."""
    block, base, spread = pruned.block, recipe.pattern.sparsity, recipe.allocation.spread
    levels = max(base - spread, min(_EDGE, base / 2)), base, min(base + spread, 1 - min(_EDGE, (1 - base) / 2))
    parameters = dict.fromkeys(linear.parameter for linear in block.linears)  # several linears may share a parameter
    dense = [parameter.clone() for parameter in parameters]
    inputs, few = partial(frontier.inputs, entering, block), recipe.pruner.min_tokens
    known: Known = {}
    curve = []
    for level in levels:
        sparsities = Sparsities(Unstructured(level), recipe.sparsities.by_name)
        prune_block_(pruned, inputs, pruner, sparsities, False, known, few, frontier.ranks)
        meter = ErrorMeter()
        with many_passes([block]):
            for batch in frontier.heldout_batches:
                states = frontier.run([block], entering.read(batch, block.device), batch)
                meter.update(form.put_out(states), form.put_out(after.read(batch, block.device)))
        curve.append((level, meter.error(frontier.ranks).relative))
        for parameter, weight in zip(parameters, dense, strict=True):
            parameter.copy_(weight)
        pruned.masks.clear()
    return curve
