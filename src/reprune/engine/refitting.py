"""Least squares as part of pruning: each linear group is refitted before the next one's statistics are gathered.

Gathers the inputs of a group in the sparse block and in its dense twin; `reprune.math.least_squares` fits.
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
from reprune.model.block import Block, Call, LinearGroup, many_passes
from reprune.model.linears import Linear

Pairs = Callable[[], Iterable[tuple[slice, Tensor, Tensor, Call]]]
"""Returns batches of all samples, calibration and held-out: their numbers, what enters the sparse block, what enters
its dense twin, and the block's other arguments."""


@final
@dataclass(frozen=True)
class Refitting:
    """How the groups of one block are refitted."""

    solver: LeastSquares
    dense: Block  # as it was before pruning
    pairs: Pairs
    calibration: int  # this rank's number of calibration samples, which come before the held-out ones
    statistics_samples: int  # how many of these, from the first, give the pruner's statistics
    statistics_of_all: bool  # whether these are all calibration samples, on every rank
    ranks: Ranks

    @torch.no_grad()
    def gather(self, block: Block, group: LinearGroup, statistics: Statistics) -> tuple[Paired, Paired] | str:
        """Gather a group's inputs in both models, over calibration and held-out samples, in one pass.

        Args:
            block: the sparse block; the groups before this one are pruned and refitted.
            group: a group of that block.
            statistics: the pruner's, empty; filled on the way.

        Returns:
            The sums over the calibration and over the held-out samples; or why there are none, with unusable
            statistics.
        """
        if not group.once:
            return "it runs several times in a pass"
        # A pruner whose statistics are X'X of the same samples shares it.
        same = statistics if isinstance(statistics, Gram) and self.statistics_of_all else None
        found = Paired(group.columns, block.device, same), Paired(group.columns, block.device)
        with many_passes([block, self.dense]):
            alike = self._take_in_(block, group, statistics, found, same is None)
        if sum(self.ranks.add([0.0 if alike else 1.0])):  # on any rank
            return "it reads other tokens in the sparse model than in the dense one"
        for pair in found:
            pair.sum_over_(self.ranks)
        if same is None:
            statistics.sum_over_(self.ranks)
        return found

    def _take_in_(
        self, block: Block, group: LinearGroup, statistics: Statistics, found: tuple[Paired, Paired], apart: bool
    ) -> bool:
        """Add this rank's samples to the sums; returns whether the group gets the same tokens in both models.

        `apart` says that the pruner's statistics are not part of `found` and must be updated separately.
        """
        twin = self._twins(group)[0]
        for samples, states, dense_states, call in self.pairs():
            X = block.inputs_of(group.linears[0], states, call)
            Z = self.dense.inputs_of(twin, dense_states, call)
            every = (*states.shape[:2], group.columns)  # undoes the flattening of samples and tokens by some models
            if X.shape != Z.shape or X.numel() != math.prod(every):
                return False
            X, Z = X.reshape(every), Z.reshape(every)
            heldout = samples.start >= self.calibration
            found[heldout].update(X, Z)
            if apart and (left := self.statistics_samples - samples.start) > 0 and not heldout:
                statistics.update(X[:left])
        return True

    def refit(self, group: LinearGroup, results: Sequence[Pruned], pairs: tuple[Paired, Paired]) -> Refit:
        """Fit a group's weights under the pruner's masks."""
        return self.solver.refit(
            [result.weight for result in results],
            [result.mask for result in results],
            [twin.matrix() for twin in self._twins(group)],
            *pairs,
        )

    def _twins(self, group: LinearGroup) -> list[Linear]:
        """The linears of the same names in the dense block."""
        dense = {linear.name: linear for linear in self.dense.linears}
        return [dense[name] for name in group.names]
