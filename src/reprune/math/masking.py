"""Sets to zero what a mask leaves out."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_(values: Tensor, mask: Tensor) -> Tensor:
    """Multiply values by a mask in place.

    On a CPU, bytes are multiplied by in a third of the time that PyTorch takes for bool.

    Args:
        values: of any shape and float dtype.
        mask: bool, of the same shape, True where they stay.

    Returns:
        The values; zeros have the sign of what they were.
    """
    return values.mul_(mask.view(torch.uint8))


def mask_weights_(weights: Tensor, mask: Tensor) -> Tensor:
    """The same of weights that are finite, all of whose zeros are then positive, as they are saved."""
    return mask_(weights, mask).add_(0.0)
