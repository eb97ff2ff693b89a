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
    """Sums squared differences over batches; the sums are held in float64.

    A batch's sums are read when the next batch comes: by then a GPU has computed them, and it has the next at hand.
    """

    def __init__(self, scale: Tensor | None = None) -> None:
        """`scale` (hidden,), if given, is what the standardized error divides each feature's differences by."""
        self._scale = scale
        self._sums = [0.0, 0.0, 0.0]  # of the squares of differences, of targets, of scaled differences
        self._last: Tensor | None = None  # the same of the last batch, float64
        self._count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch: outputs and targets (samples, tokens, hidden), any float dtype."""
        outputs, targets = outputs.detach().float(), targets.detach().float()
        difference = outputs - targets
        sums = [_squares(difference), _squares(targets)]
        if self._scale is not None:
            sums.append(_squares(difference / self._scale))
        self._read_last()
        self._last = torch.stack(sums)
        self._count += targets.numel()

    def _read_last(self) -> None:
        if self._last is not None:
            for place, value in enumerate(self._last.tolist()):
                self._sums[place] += value
            self._last = None

    def error(self, ranks: Ranks = ALONE) -> Error:
        """The error over all batches of all ranks so far (0 if there were none)."""
        self._read_last()
        difference, target, scaled = self._sums
        difference, scaled, target, count = ranks.add([difference, scaled, target, self._count])
        return Error(
            difference / max(count, 1),
            difference / target if target else 0.0,
            None if self._scale is None else scaled / max(count, 1),
        )


def _squares(X: Tensor) -> Tensor:
    """The sum of squares, a scalar, float64."""
    return X.square().sum(dtype=torch.float64)
