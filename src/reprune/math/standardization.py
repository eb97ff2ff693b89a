"""How large each feature of a window's targets is, and how much it varies, so that a loss can count all alike.

A few features of a language model's hidden states are hundreds of times as large as the others (massive activations).
They make up most of the squared error, whatever they do for the model. The norm at the beginning of the next block
scales features back to about the same size; a loss over standard deviations does so before gradients are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from reprune.math.ranks import Ranks

FLOOR = 1e-3
"""Of the mean variance, added to each: features that hardly vary are not to decide."""


@final
@dataclass(frozen=True)
class FeatureStatistics:
    """Of all features over tokens."""

    power: float
    """The mean square of all numbers."""
    largest_share: float
    """How much of all features' power is that of one of them, the largest; 0 where there is none."""
    scale: Tensor
    """What to divide each feature's differences by, (hidden,), float32: sqrt(variance + FLOOR * mean variance).

    Features of a target that does not vary at all are divided by 1.
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
        """What the sums amount to.

        Args:
            hidden: how many features there are, also where this rank has seen none.
            device: where the scale is to be.
            ranks: over which the tokens are spread.
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
