"""Perplexity of a whole model, loaded by plain Transformers, over non-overlapping windows of a text.

The text is tokenized once, without special tokens, and cut in order into windows of `seqlen` tokens. If the tokenizer
adds a beginning-of-sequence token, each window is that token and the next seqlen - 1 tokens. Every token except a
window's first is predicted from those before it; the perplexity is exp of the mean loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from reprune.doors.evaluation.protocols import Measured
from reprune.errors import NumericalError
from reprune.model.block import Precision
from reprune.model.full_speed import full_speed
from reprune.model.head import TokenLosses

_LARGEST_EXPONENT = 709.0  # of a float64


@final
@dataclass(frozen=True, kw_only=True)
class Perplexity(Measured):
    """A perplexity with all that decides it, so that no two are compared by mistake."""

    perplexity: float
    tokens: int  # predicted
    weights_dtype: str  # in which the weights are saved


@full_speed()
@torch.no_grad()
def perplexity(
    model: Any, windows: Tensor, precision: Precision, progress: Callable[[int], None] = lambda done: None
) -> float:
    """exp of the mean loss over all predicted tokens of windows (windows, tokens), int64.

    Logits are computed in slices, so that a large vocabulary fits small memory.

    Raises:
        NumericalError: the loss or the perplexity is not finite.
    """
    losses = TokenLosses(model, precision)
    total = 0.0
    with precision.on(model.device):  # around all windows, so that weights are converted once
        for number, ids in enumerate(windows.to(model.device).split(1), 1):
            total += float(losses(ids).sum(dtype=torch.float64))
            progress(number)
    loss = total / (len(windows) * (windows.shape[1] - 1))
    if not math.isfinite(loss):
        raise NumericalError("the model's loss on this text is not finite")
    if loss > _LARGEST_EXPONENT:
        raise NumericalError(
            f"the model's loss on this text, {loss:.4g} per token, is too high for a finite perplexity"
        )
    return math.exp(loss)
