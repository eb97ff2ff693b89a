"""How far what one model predicts is from what another does: the Kullback-Leibler divergence of their next tokens.

Logits are as wide as the vocabulary, so the gradient is taken to the states that they are made of part by part, in
closed form, and no more logits are held than those of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

Parts = Callable[[Tensor, Tensor], Iterable[tuple[slice, slice]]]
"""From states and ids to the samples and tokens that are taken at a time, all of them in turn."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""From states (batch, tokens, ...) and ids (batch, tokens) to logits (batch, tokens, words), float32."""


@torch.no_grad()
def divergence(logits: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token KL(p || q) = sum over words of p (log p - log q), in nats.

    Args:
        logits: of q, (..., words), float32: what is to come near.
        of: of p, the same shape: what it is to come near to.

    Returns:
        The divergences (...), float32, at least 0 but for rounding; and p (..., words).
    """
    p = of.softmax(-1)  # not exp of its logarithm, which is ten times as slow where it is next to nothing
    negative_entropy = _dot(p, of.log_softmax(-1))
    return negative_entropy - _dot(p, logits.log_softmax(-1)), p


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.einsum("...w,...w->...", one, other)


def summed_divergence(states: Tensor, of: Tensor, ids: Tensor, predict: Predict, parts: Parts) -> Tensor:
    """The sum of all tokens' divergence, with a gradient to the states where they record one.

    Args:
        states: what q is predicted from, (batch, tokens, ...), float32.
        of: what p is predicted from, of the same shape.
        ids: the tokens (batch, tokens).
        predict: makes the logits.
        parts: how many at a time.
    """
    if states.requires_grad:
        summed = _Summed.apply(states, of, ids, predict, parts)  # type: ignore[no-untyped-call]  # PyTorch's own
        assert isinstance(summed, Tensor)
        return summed
    total = states.new_zeros(())
    with torch.no_grad():
        for part in parts(states, ids):
            total += divergence(predict(states[part], ids[part]), predict(of[part], ids[part]))[0].sum()
    return total


@final
class _Summed(torch.autograd.Function):
    """Finds the gradient along with the sum, while a part's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, of: Tensor, ids: Tensor, predict: Predict, parts: Parts) -> Tensor:
        gradient = torch.zeros_like(states)
        total = states.new_zeros(())
        for part in parts(states, ids):
            one = states[part].detach().requires_grad_()
            with torch.enable_grad():
                logits = predict(one, ids[part])
            apart, p = divergence(logits, predict(of[part], ids[part]))
            by_logits = logits.detach().softmax(-1).sub_(p)  # the derivative of the divergence: q - p
            gradient[part] = torch.autograd.grad(logits, one, by_logits)[0]
            total += apart.sum()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None, None
