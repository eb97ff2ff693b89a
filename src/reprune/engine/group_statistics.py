"""Gathers the statistics of a block's groups of linears from what passes through it, for any pruner.

Knows nothing of masks, nor of what becomes of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reprune.errors import UnsupportedModelError
from reprune.math.checked import Checked
from reprune.math.pruner import Pruner
from reprune.math.ranks import Ranks
from reprune.math.statistics import Statistics
from reprune.model.block import Block, Call, Enough, LinearGroup, many_passes
from reprune.model.linears import Linear

AT_ONCE = 2**32  # bytes of experts' statistics that are gathered in one pass; more experts take more passes

Known = dict[Hashable, list[Statistics]]
"""Statistics of groups of one block on the same inputs, by what they are, whose, and of which groups."""

Inputs = Callable[[], Iterable[tuple[Tensor, Call]]]
"""Gives the block's inputs, batch by batch, each time it is called."""


def gathered(
    block: Block,
    inputs: Inputs,
    groups: Sequence[LinearGroup],
    pruner: Pruner[Any],
    known: Known,
    ranks: Ranks,
) -> list[Statistics]:
    """The statistics of each group's inputs: those that are known, or from one pass, no further than they need it.

    A pruner that needs no data has empty ones, unless it is to be told how many tokens reach an expert.
    """
    if _needs_none(groups, pruner):
        return [pruner.statistics(group.columns, block.device) for group in groups]
    if (key := _key(groups, pruner)) not in known:
        with gathering(block, groups, pruner, known, ranks, alone=True), many_passes([block]):
            for states, call in inputs():
                block.show(states, call)
    return known[key]


@contextmanager
def gathering(
    block: Block,
    groups: Sequence[LinearGroup],
    pruner: Pruner[Any],
    known: Known,
    ranks: Ranks,
    alone: bool = False,
) -> Iterator[None]:
    """Have what passes through a block within this context make up the statistics of its groups, `known` at its end.

    The first linear of a group stands for all. They are summed over ranks. Where they are known already, or none are
    needed, nothing happens. `alone` says that a pass has no other purpose: it is ended by `Enough` once each group has
    been seen, where each runs once in every pass.

    Raises:
        UnsupportedModelError: no token reached a linear that is no expert's.
    """
    if (key := _key(groups, pruner)) in known or _needs_none(groups, pruner):
        yield
        return
    made = {group.names[0]: pruner.statistics(group.columns, block.device) for group in groups}
    in_turn = alone and all(group.once and group.stage is None for group in groups)
    seen = dict.fromkeys(made, 0)  # passes: those that are in groups may run in another order than their groups

    def saw(linear: Linear, X: Tensor) -> None:
        made[linear.name].update(X)
        seen[linear.name] += 1
        if in_turn and len(set(seen.values())) == 1:
            raise Enough

    with block.watch(saw, [group.linears[0] for group in groups]):
        yield
    for statistics in made.values():
        statistics.sum_over_(ranks)
    for group in groups:
        if not group.expert and not made[group.names[0]].tokens:
            raise UnsupportedModelError(
                f"{', '.join(group.names)}: no token of the calibration samples was seen to reach it, though it ran "
                "when the block was examined; leave it dense with --exclude, and please report this model."
            )
    known[key] = list(made.values())


def _needs_none(groups: Sequence[LinearGroup], pruner: Pruner[Any]) -> bool:
    """Whether a pruner can do without statistics; of experts they say how many tokens each has seen."""
    return pruner.data_free and not any(group.expert for group in groups)


def _key(groups: Sequence[LinearGroup], pruner: Pruner[Any]) -> Hashable:
    """What decides the statistics of a package's pruner is known to it alone: no other takes them."""
    whose = (pruner.name, pruner.settings) if isinstance(pruner, Checked) else None
    return gathers(pruner), whose, tuple(group.names[0] for group in groups)


def gathers(pruner: Pruner[Any]) -> type[Statistics]:
    """What kind of statistics a pruner needs."""
    return type(pruner.statistics(1, torch.device("cpu")))


def passes(groups: Sequence[LinearGroup], pruner: Pruner[Any]) -> list[list[LinearGroup]]:
    """Groups whose statistics are gathered in one pass: all, but for experts that are too many for memory at once."""
    size = gathers(pruner).size
    found: list[list[LinearGroup]] = [[]]
    left = AT_ONCE
    for group in groups:
        left -= size(group.columns) if group.expert else 0
        if left < 0 and found[-1]:
            found.append([])
            left = AT_ONCE - size(group.columns)
        found[-1].append(group)
    return found
