"""The guard against overfitting: of all the states that a fit passes through, the one of lowest held-out error.

The paper's finding is that a lower calibration error can be a worse model; held-out samples, which no gradient has
seen, tell the two apart. States are compared by an error in which all features count alike, where their scale is known:
the plain one is often that of one feature alone, whose ups and downs say nothing of the model. But no state is kept
whose plain error is above that of the start. Knows parameters and errors, nothing of how the steps between them are
made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import nn

from reprune.math.reconstruction_error import Error


@final
class Guard:
    """Keeps the best state that parameters have had, and says when it is no use to go on."""

    def __init__(self, parameters: Sequence[nn.Parameter], start: Error, patience: int) -> None:
        """
        Args:
            parameters: what is fitted.
            start: the held-out error as they stand.
            patience: how many epochs in a row may pass without an error below that of all epochs before them. The
                start is not among those: where the first steps, the longest, threw the parameters back, what falls
                from there is on its way below the start.
        """
        self._parameters = parameters
        self._patience = patience
        self._start = self._lowest = start
        self._best_epoch = 0
        self._lowest_since, self._progress_epoch = math.inf, 0
        self._best = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def stops_after(self, epoch: int, heldout: Error) -> bool:
        """Take in the held-out error after an epoch; whether that was the last one worth its time."""
        if heldout.judged < self._lowest.judged and heldout.normalized <= self._start.normalized:
            self._lowest, self._best_epoch = heldout, epoch
            for kept, parameter in zip(self._best, self._parameters, strict=True):
                kept.copy_(parameter)
        if heldout.judged < self._lowest_since:
            self._lowest_since, self._progress_epoch = heldout.judged, epoch
        return epoch - self._progress_epoch >= self._patience

    @torch.no_grad()
    def restore_(self) -> tuple[int, Error]:
        """Put the best state back; returns its epoch, 0 for the start, and its held-out error."""
        for kept, parameter in zip(self._best, self._parameters, strict=True):
            parameter.copy_(kept)
        return self._best_epoch, self._lowest
