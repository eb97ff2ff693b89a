"""Errors on the samples that are calibrated on and on those held out, which pass through blocks together."""

from __future__ import annotations

from typing import final

from torch import Tensor

from reprune.math.ranks import Ranks
from reprune.math.reconstruction_error import ErrorMeter
from reprune.math.solver import Errors


@final
class ErrorPair:
    """Measures calibration and held-out samples apart."""

    def __init__(self, calibration: int, scale: Tensor | None = None) -> None:
        """Samples before `calibration` are calibrated on; `scale` is that of an `ErrorMeter`."""
        self._calibration = calibration
        self._meters = (ErrorMeter(scale), ErrorMeter(scale))

    def update(self, batch: slice, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch of samples (all of one kind)."""
        self._meters[batch.start >= self._calibration].update(outputs, targets.to(outputs.device))

    def errors(self, ranks: Ranks) -> Errors:
        """The errors over all batches of all ranks so far."""
        return Errors(self._meters[0].error(ranks), self._meters[1].error(ranks))
