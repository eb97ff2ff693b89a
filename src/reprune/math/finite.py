"""Whether all numbers of a tensor are finite, without another tensor of its size."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(X: Tensor) -> bool:
    """Whether X, of any float dtype, holds no NaN and no infinity.

    `torch.isfinite` briefly takes another 1.75 times the memory of X, which is 0.6 GB for a Gram matrix of 9,000
    columns. The minimum and the maximum give the same answer: both are NaN if X holds a NaN.
    """
    if not X.numel():
        return True
    return bool(torch.isfinite(torch.stack(X.aminmax())).all())
