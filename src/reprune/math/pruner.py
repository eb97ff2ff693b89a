"""What a pruner is: scores for the weights of a linear group, a mask, and perhaps updated weights.

A new pruner is one file with a class derived from `Pruner`, its name in `reprune.planning.axes` and its settings in
`reprune.planning.recipe`; or a package of its own (see `reprune.planning.pruners`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.finite import all_finite
from reprune.math.patterns import Pattern
from reprune.math.statistics import Statistics

S = TypeVar("S", bound=Statistics)


@dataclass(frozen=True)
class Pruned:
    """One matrix after pruning."""

    weight: Tensor  # (rows, columns), float32, exactly zero where the mask is False
    mask: Tensor  # (rows, columns), bool, True where kept
    notes: tuple[str, ...] = ()  # anything out of the ordinary, in words


class Pruner(ABC, Generic[S]):
    """Chooses the mask of each matrix of a linear group from statistics of the group's inputs."""

    data_free: bool = False
    """Whether it looks at the weights alone; then no samples are run to gather statistics."""

    @abstractmethod
    def statistics(self, columns: int, device: torch.device) -> S:
        """A new accumulator of what this pruner needs to know about a group's inputs (..., columns)."""

    def prune(self, weights: Sequence[Tensor], statistics: S, pattern: Pattern) -> list[Pruned]:
        """Prune all matrices of one group, which share their inputs.

        Args:
            weights: matrices (rows_i, columns), float32; not changed.
            statistics: the inputs' statistics, made by `statistics` and fed with calibration data.
            pattern: what the masks may look like.

        Raises:
            NumericalError: the weights or statistics are not finite, or a matrix cannot be inverted.
        """
        for number, weight in enumerate(weights):
            if not all_finite(weight):
                raise NumericalError(f"matrix {number + 1} of this group holds NaN or infinite weights")
        return self._prune(weights, statistics, pattern)

    @abstractmethod
    def _prune(self, weights: Sequence[Tensor], statistics: S, pattern: Pattern) -> list[Pruned]:
        """Like `prune`, which has checked that the weights are finite."""
