"""The mean square of differences, with a gradient that takes no memory beside them.

By PyTorch's own operations both ways together hold five tensors of the outputs' size more, at the moment when all that
the forward pass kept for the gradients is still there.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor


def mean_square_(outputs: Tensor, targets: Tensor, scale: Tensor | None = None) -> Tensor:
    """The mean of (outputs - targets)^2, or of ((outputs - targets) / scale)^2, with a gradient to the outputs.

    Args:
        outputs: (samples, ..., hidden), float32.
        targets: the same; they are overwritten.
        scale: of each feature, (hidden,), if there is one.

    Returns:
        A number, float32. Its gradient can be taken once.
    """
    mean = _MeanSquare.apply(outputs, targets, scale)  # type: ignore[no-untyped-call]  # PyTorch's own
    assert isinstance(mean, Tensor)
    return mean


@final
class _MeanSquare(torch.autograd.Function):
    """Holds the differences, which become their own gradient."""

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
        gradient.mul_(outer[0] * (-2.0 / gradient.numel()))  # they are of the targets from the outputs
        return gradient if ctx.scale is None else gradient.div_(ctx.scale), None, None
