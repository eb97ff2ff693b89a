"""What a pruner or solver needs to know about a linear's inputs. Accumulated in float32, one batch at a time.

All linears of a group read the same inputs, so they share one object.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from reprune.math.ranks import Ranks
from reprune.math.slices import slices


class Statistics:
    """Counts the tokens seen, and nothing else (all that magnitude pruning needs)."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.columns = columns
        self.device = device
        self.tokens = 0

    @staticmethod
    def size(columns: int) -> int:
        """The bytes that the sums take for this many columns."""
        del columns
        return 0

    def update(self, X: Tensor) -> None:
        """Take in one batch of inputs X (..., columns), any float dtype."""
        if X.shape[-1] != self.columns:
            raise ValueError(f"inputs of {X.shape[-1]} columns, where {self.columns} were expected")
        X = X.detach().reshape(-1, self.columns)  # (tokens, columns)
        self.tokens += X.shape[0]
        with torch.autocast(X.device.type, enabled=False):  # a block that is run in half precision calls this
            self._accumulate(X.float())

    def _accumulate(self, X: Tensor) -> None:
        """Add X (tokens, columns), float32."""

    def sum_over_(self, ranks: Ranks) -> None:
        """Add up what all ranks have seen."""
        self.tokens = int(ranks.add([self.tokens])[0])
        ranks.sum_(self._sums_of())

    def _sums_of(self) -> list[Tensor]:
        """The tensors that are sums over tokens; several processes add up theirs."""
        return []


@final
class SquaredNorms(Statistics):
    """The squared L2 norm of each input column: sum over tokens of x^2, (columns,), float32."""

    def __init__(self, columns: int, device: torch.device) -> None:
        super().__init__(columns, device)
        self.sums = torch.zeros(columns, device=device)

    @staticmethod
    def size(columns: int) -> int:
        return 4 * columns

    def _accumulate(self, X: Tensor) -> None:
        self.sums += X.square().sum(dim=0)

    def _sums_of(self) -> list[Tensor]:
        return [self.sums]


@final
class Gram(Statistics):
    """The Gram matrix X'X of the inputs, (columns, columns), float32."""

    def __init__(self, columns: int, device: torch.device) -> None:
        super().__init__(columns, device)
        self._sums = torch.zeros(columns, columns, device=device)
        self._mirrored = True  # whether the lower triangle is a copy of the upper

    @staticmethod
    def size(columns: int) -> int:
        return 4 * columns**2

    @property
    def matrix(self) -> Tensor:
        """X'X of all inputs so far; further updates change the tensor."""
        if not self._mirrored:
            for strip in _strips(self.columns):
                self._sums[strip.stop :, strip] = self._sums[strip, strip.stop :].T
            self._mirrored = True
        return self._sums

    def squared_norms(self) -> SquaredNorms:
        """The squared norms of the same inputs, which are the diagonal of X'X."""
        norms = SquaredNorms(self.columns, self.device)
        norms.sums, norms.tokens = self._sums.diagonal().clone(), self.tokens
        return norms

    def _accumulate(self, X: Tensor) -> None:
        # X'X is symmetric: each strip of rows is summed from its diagonal on, which is five eighths of the work.
        for strip in _strips(self.columns):
            self._sums[strip, strip.start :].addmm_(X[:, strip].T, X[:, strip.start :])
        self._mirrored = False

    def _sums_of(self) -> list[Tensor]:
        return [self.matrix]  # mirrored on all ranks, even on one that has seen no tokens


def _strips(columns: int) -> list[slice]:
    """A matrix's rows in strips: four, or one if it is so small that calls cost more than products."""
    return slices(0, columns, columns if columns < 256 else -(-columns // 4))


@final
class Paired:
    """X'X and X'Z of a linear's inputs, X in the sparse model and Z in the dense one; (columns, columns), float32."""

    def __init__(self, columns: int, device: torch.device, gram: Gram | None = None) -> None:
        """`gram`, if given, sums X'X here too, so that a pruner that needs the same matrix can share it."""
        self.gram = gram or Gram(columns, device)
        self.cross = torch.zeros(columns, columns, device=device)

    def update(self, X: Tensor, Z: Tensor) -> None:
        """Take in the inputs of the same tokens, X and Z (..., columns), any float dtype."""
        if X.shape != Z.shape:
            raise ValueError(f"inputs of shape {tuple(X.shape)} in one model and {tuple(Z.shape)} in the other")
        self.gram.update(X)
        X, Z = (one.detach().reshape(-1, one.shape[-1]).float() for one in (X, Z))
        self.cross.addmm_(X.T, Z)

    def sum_over_(self, ranks: Ranks) -> None:
        """Add up what all ranks have seen."""
        self.gram.sum_over_(ranks)
        ranks.sum_([self.cross])
