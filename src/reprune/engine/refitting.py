"""Least squares as part of pruning: each linear group is refitted before the statistics of the next are taken.

Knows the pairs of states that enter the sparse block and its dense twin; `reprune.math.least_squares` fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from reprune.math.least_squares import LeastSquares, Refit
from reprune.math.pruner import Pruned
from reprune.math.ranks import Ranks
from reprune.math.statistics import Gram, Paired, Statistics
from reprune.model.block import Block, Call, LinearGroup
from reprune.model.linears import Linear

Pairs = Callable[[], Iterable[tuple[slice, Tensor, Tensor, Call]]]
"""Gives samples in batches, those calibrated on and those held out: which they are, what enters the sparse block and
what enters its dense twin, and the block's other arguments."""


@final
@dataclass(frozen=True)
class Refitting:
    """How the groups of one block are refitted."""

    solver: LeastSquares
    dense: Block  # as it was before pruning
    pairs: Pairs
    calibration: int  # how many samples, from the first, are calibrated on; the others are held out
    statistics_samples: int  # how many of these, from the first, the pruner's statistics are of
    statistics_of_all: bool  # whether that is all of all ranks
    ranks: Ranks

    @torch.no_grad()
    def gather(self, block: Block, group: LinearGroup, statistics: Statistics) -> tuple[Paired, Paired] | None:
        """Take in the inputs of a group in both models, over calibration and held-out samples, in one pass.

        Args:
            block: the sparse block, the groups before this one pruned and refitted.
            group: of that block.
            statistics: what the pruner needs, empty; fed on the way.

        Returns:
            None, with statistics that are of no use, where the two models do not give the group the same tokens, as
            where experts are routed to, or where it runs several times in a pass.
        """
        if not group.once:
            return None
        # A pruner whose statistics are X'X of the same samples takes it from here.
        same = statistics if isinstance(statistics, Gram) and self.statistics_of_all else None
        found = Paired(group.columns, block.device, same), Paired(group.columns, block.device)
        alike = self._take_in_(block, group, statistics, found, same is None)
        if sum(self.ranks.add([0.0 if alike else 1.0])):  # on any rank
            return None
        for pair in found:
            pair.sum_over_(self.ranks)
        if same is None:
            statistics.sum_over_(self.ranks)
        return found

    def _take_in_(
        self, block: Block, group: LinearGroup, statistics: Statistics, found: tuple[Paired, Paired], apart: bool
    ) -> bool:
        """Take in this rank's samples; returns whether both models give the group the same tokens.

        `apart` says that the pruner's statistics are not those that are found.
        """
        twin = self._twins(group)[0]
        for samples, states, dense_states, call in self.pairs():
            X = block.inputs_of(group.linears[0], states, call)
            Z = self.dense.inputs_of(twin, dense_states, call)
            every = (*states.shape[:2], group.columns)  # some models flatten samples and tokens before a linear
            if X.shape != Z.shape or X.numel() != math.prod(every):
                return False
            X, Z = X.reshape(every), Z.reshape(every)
            heldout = samples.start >= self.calibration
            found[heldout].update(X, Z)
            if apart and (left := self.statistics_samples - samples.start) > 0 and not heldout:
                statistics.update(X[:left])
        return True

    def refit(self, group: LinearGroup, results: Sequence[Pruned], pairs: tuple[Paired, Paired]) -> Refit:
        """A group's best weights under the pruner's masks."""
        return self.solver.refit(
            [result.weight for result in results],
            [result.mask for result in results],
            [twin.matrix() for twin in self._twins(group)],
            *pairs,
        )

    def _twins(self, group: LinearGroup) -> list[Linear]:
        """The dense block's linears of the same names."""
        dense = {linear.name: linear for linear in self.dense.linears}
        return [dense[name] for name in group.names]
