"""Sets the values that a mask leaves out to zero, and picks those that it keeps."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 2**24
"""How many values are picked from at a time. PyTorch lists the places of those that are kept, as int64 per dimension;
for all experts of a layer, this list would be up to three times as large as their weights."""
PLACES_BYTES = 8 * _AT_ONCE
"""The largest size of such a list."""


def mask_(values: Tensor, mask: Tensor) -> Tensor:
    """Multiply values by a mask in place.

    On a CPU, multiplying by bytes takes a third of the time of multiplying by bool.

    Args:
        values: of any shape and float dtype.
        mask: bool, of the same shape, True where values stay.

    Returns:
        The values; zeros have the sign of the values that they replace.
    """
    return values.mul_(mask.view(torch.uint8))


def mask_weights_(weights: Tensor, mask: Tensor) -> Tensor:
    """The same for finite weights, which are saved: all their zeros become positive."""
    return mask_(weights, mask).add_(0.0)


def pick(values: Tensor, mask: Tensor) -> Tensor:
    """The values that a mask keeps, as one vector in row-major order.

    Args:
        values: of any shape and dtype.
        mask: bool, of the same shape, True where values are kept.
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
    """Set the values that a mask keeps to a vector as `pick` returns it; others stay. `values` is contiguous."""
    if values.device.type == "cpu" or values.numel() <= _AT_ONCE:  # a CPU makes no list of places for this
        values.masked_scatter_(mask, picked)
        return
    start = 0
    for part, its_mask in zip(values.view(-1).split(_AT_ONCE), mask.reshape(-1).split(_AT_ONCE), strict=True):
        count = int(its_mask.count_nonzero())
        part.masked_scatter_(its_mask, picked[start : start + count])
        start += count
