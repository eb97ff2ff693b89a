"""How large each feature of a window's targets is, and how much it varies, so that a loss can weigh all alike.

A few features of a language model's hidden states are hundreds of times as large as the others (massive activations).
They make up most of the squared error, however little they matter to the model. The norm at the beginning of the next
block scales features back to about the same size; a loss of differences in standard deviations does so too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from reprune.math.ranks import Ranks

FLOOR = 1e-3
"""The share of the mean variance that is added to each variance, so that features that hardly vary do not dominate."""


@final
@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of the features over all tokens."""

    power: float
    """The mean square of all numbers."""
    largest_share: float
    """The largest feature's share in the power of all features; 0 if all are zero."""
    scale: Tensor
    """What to divide each feature's differences by, (hidden,), float32: sqrt(variance + FLOOR * mean variance).

    If no feature varies at all, it is 1 for each.
    """


@final
class FeatureSums:
    """Sums of each feature and of its square over tokens, in float64."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (3, hidden): counts, sums, sums of squares

    def update(self, targets: Tensor) -> None:
        """Take in targets (samples, tokens, hidden), any float dtype."""
        rows = targets.detach().flatten(0, -2).double()  # (samples * tokens, hidden)
        found = torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(dim=0), rows.square().sum(dim=0)])
        self._sums = found if self._sums is None else self._sums + found

    def statistics(self, hidden: int, device: torch.device, ranks: Ranks) -> FeatureStatistics:
        """The statistics of all targets so far, of all ranks.

        Args:
            hidden: how many features there are; this rank may have seen no targets.
            device: the device of the returned scale.
            ranks: the ranks that the tokens are spread over.
        """
        sums = torch.zeros(3, hidden, dtype=torch.float64) if self._sums is None else self._sums.cpu()
        ranks.sum_([sums])
        count, total, squares = sums
        count = count.clamp_min(1.0)
        powers = squares / count
        variances = (powers - (total / count).square()).clamp_min(0.0)
        variances += FLOOR * variances.mean()
        scale = torch.where(variances > 0, variances, 1.0).sqrt().float().to(device)
        power = float(powers.mean())
        return FeatureStatistics(power, float(powers.max()) / (hidden * power) if power else 0.0, scale)
