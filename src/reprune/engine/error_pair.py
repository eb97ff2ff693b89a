"""Errors on the calibration samples and on the held-out samples, which pass through blocks together."""

from __future__ import annotations

from typing import final

from torch import Tensor

from reprune.math.ranks import Ranks
from reprune.math.reconstruction_error import ErrorMeter
from reprune.math.solver import Errors


@final
class ErrorPair:
    """Measures the errors of calibration and held-out samples separately."""

    def __init__(self, calibration: int, scale: Tensor | None = None) -> None:
        """The first `calibration` samples are calibrated on, the others held out; `scale` is as for `ErrorMeter`."""
        self._calibration = calibration
        self._meters = (ErrorMeter(scale), ErrorMeter(scale))

    def update(self, batch: slice, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch of samples, either all calibration or all held-out."""
        self._meters[batch.start >= self._calibration].update(outputs, targets)

    def errors(self, ranks: Ranks) -> Errors:
        """The errors over all batches of all ranks so far."""
        return Errors(self._meters[0].error(ranks), self._meters[1].error(ranks))
