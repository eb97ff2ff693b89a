"""How far one model's predictions are from another's: the Kullback-Leibler divergence of their next tokens.

Logits are as wide as the vocabulary. So the gradient with respect to the states that they are computed from is found
part by part, in closed form, and only one part's logits are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

Parts = Callable[[Tensor, Tensor], Iterable[tuple[slice, slice]]]
"""From states and ids to slices of samples and tokens, which are computed one at a time and together cover all."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""From states (batch, tokens, ...) and ids (batch, tokens) to logits (batch, tokens, words), float32."""


@torch.no_grad()
def divergence(logits: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) of each token: the sum over words of p (log p - log q), in nats.

    Args:
        logits: the logits of q, which is fitted; (..., words), float32.
        of: the logits of p, which q should match; the same shape.

    Returns:
        The divergences (...), float32, at least 0 up to rounding; and p (..., words).
    """
    p = of.softmax(-1)  # not exp of log_softmax, which is ten times as slow where p is nearly 0
    negative_entropy = _dot(p, of.log_softmax(-1))
    return negative_entropy - _dot(p, logits.log_softmax(-1)), p


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.einsum("...w,...w->...", one, other)


def summed_divergence(states: Tensor, of: Tensor, ids: Tensor, predict: Predict, parts: Parts) -> Tensor:
    """The sum of all tokens' divergence, with a gradient to the states if they require one.

    Args:
        states: what q is predicted from, (batch, tokens, ...), float32.
        of: what p is predicted from, of the same shape.
        ids: the tokens (batch, tokens).
        predict: computes the logits.
        parts: splits samples and tokens into the parts that are computed at a time.
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
    """Computes the gradient along with the sum, while a part's logits are in memory."""

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
