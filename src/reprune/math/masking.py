"""Sets to zero what a mask leaves out, and picks what it keeps."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 2**24
"""Values among which a mask's are looked for at a time. PyTorch makes a list of their places, int64 for each dimension,
which for all experts of a layer would be up to three times as large as their weights."""
PLACES_BYTES = 8 * _AT_ONCE
"""What such a list takes at the most."""


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


def pick(values: Tensor, mask: Tensor) -> Tensor:
    """What a mask keeps, as one vector in the order in which it lies.

    Args:
        values: of any shape and dtype.
        mask: bool, of the same shape, True where they are kept.
    """
    flat, flat_mask = values.reshape(-1), mask.reshape(-1)
    if len(flat) <= _AT_ONCE:
        return flat[flat_mask]
    found = flat.new_empty(int(flat_mask.count_nonzero()))
    start = 0
    for part, its_mask in zip(flat.split(_AT_ONCE), flat_mask.split(_AT_ONCE), strict=True):
        picked = part[its_mask]
        found[start : start + len(picked)] = picked
        start += len(picked)
    return found


def put_back_(values: Tensor, mask: Tensor, picked: Tensor) -> None:
    """Set what a mask keeps of values, which lie without gaps, to a vector as `pick` gives it; leave the others."""
    if values.device.type == "cpu" or values.numel() <= _AT_ONCE:  # a CPU needs no places for this
        values.masked_scatter_(mask, picked)
        return
    start = 0
    for part, its_mask in zip(values.view(-1).split(_AT_ONCE), mask.reshape(-1).split(_AT_ONCE), strict=True):
        count = int(its_mask.count_nonzero())
        part.masked_scatter_(its_mask, picked[start : start + count])
        start += count
