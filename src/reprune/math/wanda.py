"""Wanda: weights by activations, compared within each output row (Sun et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.finite import all_finite
from reprune.math.masking import mask_weights_
from reprune.math.patterns import Pattern
from reprune.math.pruner import Pruned, Pruner
from reprune.math.statistics import SquaredNorms


@final
class Wanda(Pruner[SquaredNorms]):
    """Score |w_ij| * ||x_j||_2, compared within row i; no weight is updated."""

    def statistics(self, columns: int, device: torch.device) -> SquaredNorms:
        return SquaredNorms(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: SquaredNorms, pattern: Pattern) -> list[Pruned]:
        if not all_finite(statistics.sums):
            raise NumericalError("the inputs of this group hold NaN or infinite values, so Wanda cannot score it")
        norms = statistics.sums.sqrt()  # (columns,)
        masks = [pattern.keep(weight.abs() * norms, "row") for weight in weights]
        return [Pruned(mask_weights_(weight.clone(), mask), mask) for weight, mask in zip(weights, masks, strict=True)]
