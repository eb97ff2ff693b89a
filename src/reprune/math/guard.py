"""The guard against overfitting: it keeps, of all states that a fit passes through, the one of lowest held-out error.

The paper's finding is that a lower calibration error can mean a worse model; held-out samples, which no gradient has
seen, tell the two apart. If the scale of each feature is known, states are compared by an error in which all features
count alike: the plain error often comes from a single feature, whose ups and downs say nothing about the model. But a
state whose plain error is above that of the start is never kept. Knows parameters and errors; knows nothing of how the
steps are made.
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
    """Keeps the best state that parameters have had, and says when to stop."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], masks: Sequence[Tensor | None], start: Error, patience: int
    ) -> None:
        """
        Args:
            parameters: the parameters that are fitted.
            masks: for each, bool, True where it may change; the rest is zero and not copied. None: all of it may.
            start: the held-out error of their current values.
            patience: stop after this many epochs in a row without an error below that of all epochs before. The start
                does not count as one of these: the first steps, the longest, may throw the parameters back, and an
                error that falls from there may still get below that of the start.
        """
        self._best = [_Copy(parameter, mask) for parameter, mask in zip(parameters, masks, strict=True)]
        self._patience = patience
        self._start = self._lowest = start
        self._best_epoch = 0
        self._lowest_since, self._progress_epoch = math.inf, 0

    @torch.no_grad()
    def stops_after(self, epoch: int, heldout: Error) -> bool:
        """Take in the held-out error after an epoch; returns whether to stop."""
        if heldout.judged < self._lowest.judged and heldout.normalized <= self._start.normalized:
            self._lowest, self._best_epoch = heldout, epoch
            for copy in self._best:
                copy.take()
        if heldout.judged < self._lowest_since:
            self._lowest_since, self._progress_epoch = heldout.judged, epoch
        return epoch - self._progress_epoch >= self._patience

    @torch.no_grad()
    def restore_(self) -> tuple[int, Error]:
        """Restore the best state; returns its epoch (0: the start) and its held-out error."""
        for copy in self._best:
            copy.put_back_()
        return self._best_epoch, self._lowest


class _Copy:
    """A copy of one parameter's values."""

    def __init__(self, parameter: nn.Parameter, mask: Tensor | None) -> None:
        self._parameter, self._mask = parameter, mask
        self._values: Tensor | None = None
        self.take()

    def take(self) -> None:
        self._values = None  # frees the old copy before the new one is made
        values = self._parameter.detach()
        self._values = values.clone() if self._mask is None else pick(values, self._mask)

    def put_back_(self) -> None:
        assert self._values is not None
        if self._mask is not None:
            # If a descent has run into NaN, masked weights may be NaN too.
            put_back_(self._parameter.zero_(), self._mask, self._values)
        else:
            self._parameter.copy_(self._values)
