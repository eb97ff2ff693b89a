"""The reconstruction error of one block or window, in the paper's normalized form and as a share of the target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from reprune.math.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Error:
    """How far outputs are from their targets, over N samples of T tokens and H features."""

    normalized: float
    """(1 / (N H T)) * ||outputs - targets||^2, the paper's normalized reconstruction error."""
    relative: float
    """||outputs - targets||^2 / ||targets||^2."""
    standardized: float | None = None
    """The mean of ((outputs - targets) / scale)^2; None if no scale of the features was given."""

    @classmethod
    def of_predictions(cls, divergence: float) -> Self:
        """The error of predictions instead of outputs: their divergence, in nats per token."""
        return cls(divergence, divergence)

    @property
    def judged(self) -> float:
        """The error by which a window's states are compared, whatever the loss: the standardized one if there is one.

        A squared error can come from one feature of hundreds, and then says little about the model.
        """
        return self.normalized if self.standardized is None else self.standardized

    def in_measure(self, standardized: bool) -> float:
        """The standardized error if `standardized`, else the relative one."""
        if not standardized:
            return self.relative
        assert self.standardized is not None
        return self.standardized

    @property
    def finite(self) -> bool:
        return math.isfinite(self.normalized)


@final
class ErrorMeter:
    """Sums squared differences over batches, in float64, on the device of the outputs.

    Nothing is read from there before the error is asked for: that would wait for what a GPU has been given so far, and
    leave it without work while the next batch is gathered.
    """

    def __init__(self, scale: Tensor | None = None) -> None:
        """`scale` (hidden,), if given, is what the standardized error divides each feature's differences by."""
        self._scale = scale
        self._sums: Tensor | None = None  # (2,), with a scale (3,): squares of differences, targets, scaled differences
        self._count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch: outputs and targets (samples, tokens, hidden) on one device, any float dtype."""
        outputs, targets = outputs.detach().float(), targets.detach().float()
        difference = outputs - targets
        squares = [_squares(difference), _squares(targets)]
        if self._scale is not None:
            squares.append(_squares(difference / self._scale))
        found = torch.stack(squares)
        self._sums = found if self._sums is None else self._sums + found
        self._count += targets.numel()

    def error(self, ranks: Ranks = ALONE) -> Error:
        """The error over all batches of all ranks so far (0 if there were none)."""
        sums = [] if self._sums is None else self._sums.tolist()
        difference, target, scaled, *_ = (*sums, 0.0, 0.0, 0.0)
        difference, scaled, target, count = ranks.add([difference, scaled, target, self._count])
        return Error(
            difference / max(count, 1),
            difference / target if target else 0.0,
            None if self._scale is None else scaled / max(count, 1),
        )


def _squares(X: Tensor) -> Tensor:
    """The sum of squares, a scalar, float64."""
    return X.square().sum(dtype=torch.float64)
