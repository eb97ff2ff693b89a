"""Prunes one block: statistics of its linears' inputs from the sparse stream, then group by group the pruner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reprune.engine.refitting import Refitting
from reprune.engine.window import PrunedBlock
from reprune.errors import NumericalError, UnsupportedModelError
from reprune.math.patterns import Pattern
from reprune.math.pruner import Pruned, Pruner
from reprune.math.statistics import Statistics
from reprune.model.block import Block, Call, LinearGroup
from reprune.model.linears import Linear

Inputs = Callable[[], Iterable[tuple[Tensor, Call]]]
"""Gives the block's inputs, batch by batch, each time it is called."""


@torch.no_grad()
def prune_block_(
    pruned: PrunedBlock,
    inputs: Inputs,
    pruner: Pruner[Any],
    pattern: Pattern,
    kept_dense: Collection[str],
    sequential: bool,
    known: dict[Hashable, list[Statistics]] | None = None,
    refitting: Refitting | None = None,
) -> list[str]:
    """Choose the masks of a block's linears and set their weights as the pruner, or the refitting, leaves them.

    Args:
        pruned: the dense block, without masks; changed in place.
        inputs: the states that reach it in the sparse model, over all calibration samples.
        pruner, pattern: how.
        kept_dense: names of linears that are to stay dense.
        sequential: gather the statistics of each group anew, after the groups before it have been pruned;
            otherwise all of them come from one pass through the dense block.
        known: statistics of runs before whose block, inputs and precision are the same; takes those of this one.
        refitting: fit each group by least squares once it is pruned; its statistics are then sequential.

    Returns:
        Notes on what was not done by the plain rule.

    Raises:
        UnsupportedModelError: a linear never runs, so nothing is known of its inputs.
        NumericalError: the pruner cannot use the numbers.
    """
    block = pruned.block
    states, call = next(iter(inputs()))
    groups = _without(block.groups(states, call), kept_dense)
    running = {name for group in groups for name in group.names}
    if idle := [one.name for one in block.linears if one.name not in running and one.name not in kept_dense]:
        raise UnsupportedModelError(
            f"block {block.index}: the linear {idle[0]} never runs on the calibration data, so it cannot be pruned; "
            f"leave it dense with --set 'exclude=[\"{idle[0]}\"]'."
        )
    if refitting is not None:
        return [note for group in groups for note in _refit_(pruned, group, inputs, pruner, pattern, refitting)]
    notes: list[str] = []
    for together in [[group] for group in groups] if sequential else [groups]:
        found = _statistics(block, inputs, together, pruner, known if not sequential else None)
        for group, statistics in zip(together, found, strict=True):
            notes += _prune_(pruned, group, pruner, statistics, pattern)[1]
    return notes


def _prune_(
    pruned: PrunedBlock, group: LinearGroup, pruner: Pruner[Any], statistics: Statistics, pattern: Pattern
) -> tuple[list[Pruned], list[str]]:
    """Prune a group's matrices; returns them, and notes."""
    place = _place(pruned, group)
    with _naming(place):
        results = pruner.prune([linear.matrix() for linear in group.linears], statistics, pattern)
    for linear, result in zip(group.linears, results, strict=True):
        linear.set_(result.weight)
        pruned.masks[linear.name] = result.mask
    return results, [f"{place}: {note}" for note in results[0].notes]


def _refit_(
    pruned: PrunedBlock,
    group: LinearGroup,
    inputs: Inputs,
    pruner: Pruner[Any],
    pattern: Pattern,
    refitting: Refitting,
) -> list[str]:
    """Prune a group's matrices and fit what is left of them; returns notes."""
    place = _place(pruned, group)
    statistics = pruner.statistics(group.columns, pruned.block.device)
    pairs = refitting.gather(pruned.block, group, statistics)
    if pairs is None:
        statistics = _statistics(pruned.block, inputs, [group], pruner, None)[0]
        notes = _prune_(pruned, group, pruner, statistics, pattern)[1]
        return [*notes, f"{place}: left as the pruner made it: its tokens in the dense and the sparse model differ"]
    results, notes = _prune_(pruned, group, pruner, statistics, pattern)
    with _naming(place):
        pruned.ridges[group.names] = refitting.refit_(group, results, pairs)
    return notes


def _place(pruned: PrunedBlock, group: LinearGroup) -> str:
    return f"block {pruned.index}, {', '.join(group.names)}"


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Have what goes wrong with numbers say where."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"{place}: {error}") from None


def _without(groups: list[LinearGroup], names: Collection[str]) -> list[LinearGroup]:
    left = [replace(group, linears=tuple(one for one in group.linears if one.name not in names)) for group in groups]
    return [group for group in left if group.linears]


def _statistics(
    block: Block,
    inputs: Inputs,
    groups: list[LinearGroup],
    pruner: Pruner[Any],
    known: dict[Hashable, list[Statistics]] | None,
) -> list[Statistics]:
    """The statistics of each group's inputs, from one pass; the first linear of a group stands for all."""
    made: dict[str, Statistics] = {group.names[0]: pruner.statistics(group.columns, block.device) for group in groups}
    key = (frozenset(type(statistics) for statistics in made.values()), tuple(made))
    if known is not None and key in known:
        return known[key]

    def saw(linear: Linear, X: Tensor) -> None:
        made[linear.name].update(X)

    with block.watch(saw, [group.linears[0] for group in groups]):
        for states, call in inputs():
            block.run(states, call)
    if known is not None:
        known[key] = list(made.values())
    return list(made.values())
