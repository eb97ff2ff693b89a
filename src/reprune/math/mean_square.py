"""The mean square of differences, with a gradient that takes no memory beyond the differences.

PyTorch's own operations, forward and backward together, hold five more tensors of the outputs' size, at the moment when
everything that the forward pass kept for the gradients is still in memory.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor


def mean_square_(outputs: Tensor, targets: Tensor, scale: Tensor | None = None) -> Tensor:
    """The mean of (outputs - targets)^2, or of ((outputs - targets) / scale)^2, with a gradient to the outputs.

    Args:
        outputs: (samples, ..., hidden), float32.
        targets: of the same shape and dtype; they are overwritten.
        scale: one number per feature, (hidden,), or None.

    Returns:
        A scalar, float32. Its gradient can be taken once.
    """
    mean = _MeanSquare.apply(outputs, targets, scale)  # type: ignore[no-untyped-call]  # PyTorch's own
    assert isinstance(mean, Tensor)
    return mean


@final
class _MeanSquare(torch.autograd.Function):
    """Keeps the differences, which are turned into the gradient in place."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, scale: Tensor | None) -> Tensor:
        differences = targets.sub_(outputs)
        if scale is not None:
            differences.div_(scale)
        ctx.differences, ctx.scale = differences, scale
        return torch.stack([one.square().mean() for one in differences]).mean()  # squares of one sample at a time

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        gradient = ctx.differences
        ctx.differences = None
        gradient.mul_(outer[0] * (-2.0 / gradient.numel()))  # minus, as they are targets - outputs
        return gradient if ctx.scale is None else gradient.div_(ctx.scale), None, None
