"""A weight update by least squares under a pruner's masks: the kept weights take over what the pruned ones did.

Let X (tokens, columns) be a linear's inputs, D its dense matrix and S that matrix with the pruned weights at zero. The
update minimizes

    || X W' - X D' ||^2 + ridge * sum_j ||x_j||^2 ||W_j - S_j||^2     over W that are zero where masked

with x_j column j of X and W_j column j of W: the layer-wise reconstruction error (Shin et al. 2024, section 2), and a
pull towards the dense weights, in which each change counts by the output that it makes alone. In units of the inputs'
norms a row's system is the correlations of the inputs that it keeps, plus the ridge. A ridge as large as the
correlations lets pass what most tokens agree on and holds back what fits the calibration text alone. With so strong a
diagonal, few iterations of conjugate gradients suffice.

All that is needed of the inputs is X'X, which the pass that gathers the pruner's statistics sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.finite import all_finite
from reprune.math.least_squares import descend_
from reprune.math.magnitude import Magnitude
from reprune.math.masking import mask_, mask_weights_
from reprune.math.patterns import Pattern
from reprune.math.pruner import Pruned, Pruner
from reprune.math.sparsegpt import SparseGPT
from reprune.math.statistics import Gram
from reprune.math.wanda import Wanda


@final
@dataclass(frozen=True)
class WeightUpdate(Pruner[Gram]):
    """The masks of another pruner, and the weights of regularized least squares under them."""

    masks: Magnitude | Wanda | SparseGPT
    ridge: float = 1.0
    """A share of each input's squared norm."""
    iterations: int = 5
    products: torch.dtype = torch.float32
    """float32 or bfloat16: of the products with X'X, which are most of the work; sums and weights stay float32."""

    def statistics(self, columns: int, device: torch.device) -> Gram:
        return Gram(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: Gram, pattern: Pattern) -> list[Pruned]:
        G = statistics.matrix
        if not all_finite(G):
            raise NumericalError(
                "the inputs of this group hold NaN or infinite values, so its weights cannot be fitted"
            )
        pruned = self._masked(weights, statistics, pattern)
        D, mask = torch.cat(list(weights)), torch.cat([one.mask for one in pruned])
        ridge, G = self.ridge * G.diagonal(), G.to(self.products)
        residual = mask_((mask_(D.clone(), ~mask).to(G.dtype) @ G).to(D.dtype), mask)
        W = descend_(mask_(D, mask), residual, G, mask, ridge, self.iterations)
        split = mask_weights_(W, mask).split([len(weight) for weight in weights])
        return [replace(one, weight=weight) for one, weight in zip(pruned, split, strict=True)]

    def _masked(self, weights: Sequence[Tensor], statistics: Gram, pattern: Pattern) -> list[Pruned]:
        """What the pruner of the masks makes of them; it may need less than the Gram matrix."""
        if isinstance(self.masks, SparseGPT):
            return self.masks.prune(weights, statistics, pattern)
        return self.masks.prune(weights, statistics.squared_norms(), pattern)
