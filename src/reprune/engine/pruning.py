"""Prunes one block: statistics of its linears' inputs from the sparse stream, then group by group the pruner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
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

Known = dict[Hashable, list[Statistics]]
"""Statistics of groups of one block on the same inputs, by what they are and of which groups."""

Inputs = Callable[[], Iterable[tuple[Tensor, Call]]]
"""Gives the block's inputs, batch by batch, each time it is called."""


@torch.no_grad()
def linear_groups(block: Block, states: Tensor, call: Call, kept_dense: Collection[str]) -> list[LinearGroup]:
    """The groups of linears that are to be pruned.

    Args:
        block: dense.
        states, call: a batch of what reaches it.
        kept_dense: names of linears that are to stay dense.

    Raises:
        UnsupportedModelError: a linear never runs, so nothing is known of its inputs.
    """
    found = block.groups(states, call)
    left = [
        replace(group, linears=tuple(one for one in group.linears if one.name not in kept_dense)) for group in found
    ]
    groups = [group for group in left if group.linears]
    running = {name for group in groups for name in group.names}
    if idle := [one.name for one in block.linears if one.name not in running and one.name not in kept_dense]:
        raise UnsupportedModelError(
            f"block {block.index}: the linear {idle[0]} never runs on the calibration data, so it cannot be pruned; "
            f"leave it dense with --set 'exclude=[\"{idle[0]}\"]'."
        )
    return groups


@contextmanager
def gathering(block: Block, groups: Sequence[LinearGroup], pruner: Pruner[Any], known: Known) -> Iterator[None]:
    """Have what passes through a block within this context make up the statistics of its groups, `known` at its end.

    The first linear of a group stands for all. Where they are known already, nothing happens.
    """
    if (key := _key(groups, pruner)) in known:
        yield
        return
    made = {group.names[0]: pruner.statistics(group.columns, block.device) for group in groups}

    def saw(linear: Linear, X: Tensor) -> None:
        made[linear.name].update(X)

    with block.watch(saw, [group.linears[0] for group in groups]):
        yield
    known[key] = list(made.values())


def _key(groups: Sequence[LinearGroup], pruner: Pruner[Any]) -> Hashable:
    kind = type(pruner.statistics(1, torch.device("cpu")))
    return kind, tuple(group.names[0] for group in groups)


@torch.no_grad()
def prune_block_(
    pruned: PrunedBlock,
    inputs: Inputs,
    pruner: Pruner[Any],
    pattern: Pattern,
    sequential: bool,
    known: Known | None = None,
    refitting: Refitting | None = None,
) -> list[str]:
    """Choose the masks of a block's linears and set their weights as the pruner, or the refitting, leaves them.

    Args:
        pruned: the dense block, its groups known, without masks; changed in place.
        inputs: the states that reach it in the sparse model, over all calibration samples.
        pruner, pattern: how.
        sequential: gather the statistics of each group anew, after the groups before it have been pruned;
            otherwise all of them come from one pass through the dense block.
        known: statistics that were gathered before of the same block, inputs and precision; takes those of this call.
        refitting: fit each group by least squares once it is pruned; its statistics are then sequential.

    Returns:
        Notes on what was not done by the plain rule.

    Raises:
        NumericalError: the pruner cannot use the numbers.
    """
    block, groups = pruned.block, pruned.groups
    if refitting is not None:
        return [note for group in groups for note in _refit_(pruned, group, inputs, pruner, pattern, refitting)]
    notes: list[str] = []
    for together in [[group] for group in groups] if sequential else [groups]:
        found = _statistics(block, inputs, together, pruner, {} if sequential or known is None else known)
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
        statistics = _statistics(pruned.block, inputs, [group], pruner, {})[0]
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


def _statistics(
    block: Block, inputs: Inputs, groups: Sequence[LinearGroup], pruner: Pruner[Any], known: Known
) -> list[Statistics]:
    """The statistics of each group's inputs: those that are known, or from one pass."""
    key = _key(groups, pruner)
    if key not in known:
        with gathering(block, groups, pruner, known):
            for states, call in inputs():
                block.run(states, call)
    return known[key]
