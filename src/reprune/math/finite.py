"""Whether all numbers of a tensor are finite, without another tensor of its size."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(X: Tensor) -> bool:
    """Whether X, of any float dtype, holds no NaN and no infinity.

    `torch.isfinite` takes 1.75 times as much memory again as X for a moment, which of a Gram matrix of 9,000 columns is
    0.6 GB. The least and the greatest number say the same: either is NaN where X holds one.
    """
    if not X.numel():
        return True
    return bool(torch.isfinite(torch.stack(X.aminmax())).all())
