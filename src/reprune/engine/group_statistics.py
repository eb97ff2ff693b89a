"""Gathers the statistics of a block's linear groups, for any pruner, while samples pass through the block.

Knows nothing of masks, or of what happens to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from reprune.engine.work import Group
from reprune.errors import UnsupportedModelError
from reprune.math.checked import Checked
from reprune.math.pruner import Pruner
from reprune.math.ranks import Ranks
from reprune.math.statistics import Statistics
from reprune.model.block import Block, Call, Enough, LinearGroup, many_passes
from reprune.model.linears import Linear

AnyGroup = TypeVar("AnyGroup", LinearGroup, Group)

AT_ONCE = 2**32  # bytes of experts' statistics gathered in one pass; if they take more, there are several passes

Known = dict[Hashable, list[Statistics]]
"""Statistics of one block's groups on the same inputs, by kind, pruner (if it is a package's) and groups."""

Inputs = Callable[[], Iterable[tuple[Tensor, Call]]]
"""Returns the block's inputs, batch by batch; may be called repeatedly."""


def gathered(
    block: Block,
    inputs: Inputs,
    groups: Sequence[LinearGroup],
    pruner: Pruner[Any],
    known: Known,
    ranks: Ranks,
) -> list[Statistics]:
    """The statistics of each group's inputs: known ones, or gathered in a pass that goes no further than needed.

    For a data-free pruner they are empty, unless there are experts, whose tokens have to be counted.
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
    """Gather the statistics of a block's groups from what passes through it within this context, and add to `known`.

    The first linear of a group is watched for all of them. Statistics are summed over ranks. If they are known already,
    or not needed, nothing happens. `alone` says that the passes serve no other purpose: `Enough` then ends a pass once
    every group has been seen, if each group runs once per pass.

    Raises:
        UnsupportedModelError: no token reached a linear that is not an expert's.
    """
    if (key := _key(groups, pruner)) in known or _needs_none(groups, pruner):
        yield
        return
    made = {group.names[0]: pruner.statistics(group.columns, block.device) for group in groups}
    in_turn = alone and all(group.once and group.stage is None for group in groups)
    seen = dict.fromkeys(made, 0)  # passes so far; linears may run in another order than that of the groups

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
    """Whether no group's statistics are needed; those of experts always are, as they count tokens."""
    return all(pruner.data_free and not group.expert for group in groups)


def _key(groups: Sequence[LinearGroup], pruner: Pruner[Any]) -> Hashable:
    """The key in `known`. Statistics of a package's pruner are shared only under the same name and settings."""
    whose = (pruner.name, pruner.settings) if isinstance(pruner, Checked) else None
    return gathers(pruner), whose, tuple(group.names[0] for group in groups)


def gathers(pruner: Pruner[Any]) -> type[Statistics]:
    """The kind of statistics that a pruner needs."""
    return type(pruner.statistics(1, torch.device("cpu")))


def passes(groups: Sequence[AnyGroup], pruner: Pruner[Any]) -> list[list[AnyGroup]]:
    """Split groups by the pass that gathers their statistics: one for all, unless experts' exceed `AT_ONCE` bytes."""
    size = gathers(pruner).size
    found: list[list[AnyGroup]] = [[]]
    left = AT_ONCE
    for group in groups:
        left -= size(group.columns) if group.expert else 0
        if left < 0 and found[-1]:
            found.append([])
            left = AT_ONCE - size(group.columns)
        found[-1].append(group)
    return found


def gatherings(parts: int, times: int) -> int:
    """How often statistics that `parts` passes gather are gathered for `times` prunings: those of one pass are kept."""
    return max(times, 1) if parts > 1 else 1
