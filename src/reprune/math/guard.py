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
from torch import Tensor, nn

from reprune.math.masking import pick, put_back_
from reprune.math.reconstruction_error import Error


@final
class Guard:
    """Keeps the best state that parameters have had, and says when it is no use to go on."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], masks: Sequence[Tensor | None], start: Error, patience: int
    ) -> None:
        """
        Args:
            parameters: what is fitted.
            masks: of each, bool, True where it may change: elsewhere it is zero, and is not copied. None is all of it.
            start: the held-out error as they stand.
            patience: how many epochs in a row may pass without an error below that of all epochs before them. The
                start is not among those: where the first steps, the longest, threw the parameters back, what falls
                from there is on its way below the start.
        """
        self._best = [_Copy(parameter, mask) for parameter, mask in zip(parameters, masks, strict=True)]
        self._patience = patience
        self._start = self._lowest = start
        self._best_epoch = 0
        self._lowest_since, self._progress_epoch = math.inf, 0

    @torch.no_grad()
    def stops_after(self, epoch: int, heldout: Error) -> bool:
        """Take in the held-out error after an epoch; whether that was the last one worth its time."""
        if heldout.judged < self._lowest.judged and heldout.normalized <= self._start.normalized:
            self._lowest, self._best_epoch = heldout, epoch
            for copy in self._best:
                copy.take()
        if heldout.judged < self._lowest_since:
            self._lowest_since, self._progress_epoch = heldout.judged, epoch
        return epoch - self._progress_epoch >= self._patience

    @torch.no_grad()
    def restore_(self) -> tuple[int, Error]:
        """Put the best state back; returns its epoch, 0 for the start, and its held-out error."""
        for copy in self._best:
            copy.put_back_()
        return self._best_epoch, self._lowest


class _Copy:
    """Of one parameter, as it was."""

    def __init__(self, parameter: nn.Parameter, mask: Tensor | None) -> None:
        self._parameter, self._mask = parameter, mask
        self._values: Tensor | None = None
        self.take()

    def take(self) -> None:
        self._values = None  # before there are others
        values = self._parameter.detach()
        self._values = values.clone() if self._mask is None else pick(values, self._mask)

    def put_back_(self) -> None:
        assert self._values is not None
        if self._mask is not None:
            # Where a descent has run into NaN, what is masked may be NaN too.
            put_back_(self._parameter.zero_(), self._mask, self._values)
        else:
            self._parameter.copy_(self._values)
