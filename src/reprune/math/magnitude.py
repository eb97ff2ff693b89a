"""Magnitude pruning: the weights of smallest |w| in each matrix are pruned (PAPER: "magnitude, per layer")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from reprune.math.masking import mask_weights_
from reprune.math.patterns import Pattern
from reprune.math.pruner import Pruned, Pruner
from reprune.math.statistics import Statistics


@final
class Magnitude(Pruner[Statistics]):
    """Score |w|, compared within the whole matrix; no weight is updated (Han et al., 2015)."""

    data_free = True

    def statistics(self, columns: int, device: torch.device) -> Statistics:
        return Statistics(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern) -> list[Pruned]:
        del statistics
        masks = [pattern.keep(weight.abs(), "matrix") for weight in weights]
        return [Pruned(mask_weights_(weight.clone(), mask), mask) for weight, mask in zip(weights, masks, strict=True)]
