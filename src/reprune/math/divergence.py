"""How far what one model predicts is from what another does: the Kullback-Leibler divergence of their next tokens.

Its gradient stops at the states that the predictions are made of, part by part, so that no more logits are held than
those of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

Parts = Callable[[Tensor, Tensor], Iterable[tuple[slice, slice]]]
"""From states and ids to the samples and tokens that are taken at a time, all of them in turn."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""From states (batch, tokens, ...) and ids (batch, tokens) to logits (batch, tokens, words), float32."""


def divergence(logits: Tensor, of: Tensor) -> Tensor:
    """Of each token KL(p || q) = sum over words of p (log p - log q), in nats.

    Args:
        logits: of q, (..., words), float32: what is to come near.
        of: of p, the same shape: what it is to come near to.

    Returns:
        (...), float32, at least 0 but for rounding.
    """
    return F.kl_div(logits.log_softmax(-1), of.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def summed_divergence(states: Tensor, of: Tensor, ids: Tensor, predict: Predict, parts: Parts) -> Tensor:
    """The sum of all tokens' divergence, with a gradient to the states where they record one.

    Args:
        states: what q is predicted from, (batch, tokens, ...), float32.
        of: what p is predicted from, of the same shape.
        ids: the tokens (batch, tokens).
        predict: makes the logits.
        parts: how many at a time.
    """
    if not states.requires_grad:
        return torch.stack([_of_part(states, of, ids, predict, part) for part in parts(states, ids)]).sum()
    summed = _Summed.apply(states, of, ids, predict, parts)  # type: ignore[no-untyped-call]  # PyTorch's own
    assert isinstance(summed, Tensor)
    return summed


def _of_part(states: Tensor, of: Tensor, ids: Tensor, predict: Predict, part: tuple[slice, slice]) -> Tensor:
    with torch.no_grad():
        wanted = predict(of[part], ids[part])
    return divergence(predict(states[part], ids[part]), wanted).sum()


@final
class _Summed(torch.autograd.Function):
    """Finds the gradient along with the sum, while a part's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, of: Tensor, ids: Tensor, predict: Predict, parts: Parts) -> Tensor:
        gradient = torch.zeros_like(states)
        total = states.new_zeros(())
        for part in parts(states, ids):
            with torch.enable_grad():
                one = states[part].detach().requires_grad_()
                summed = _of_part(one, of[part], ids[part], predict, (slice(None), slice(None)))
            gradient[part] = torch.autograd.grad(summed, one)[0]
            total += summed.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None, None
