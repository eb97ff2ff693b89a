"""Reconstruction of one linear group by least squares: its best weights under given masks, from Gram matrices alone.

Let X (tokens, columns) be a linear's inputs in the sparse model and Z those in the dense one. The weights W that best
reproduce the dense model's outputs Z D' from the sparse model's inputs minimize

    || X W' - Z D' ||^2 + ridge * mean(diag X'X) * || W - S ||^2     over W that are zero where masked

where D is the dense matrix and S the weights that the pruner left. This is one linear system per row, X'X plus the
ridge restricted to the columns that the row keeps. Conjugate gradients solve all rows at once, as each product with X'X
is one matrix product. No pass over activations is needed beyond the one that sums X'X and X'Z. The objective is the
paper's layer-wise one (Shin et al. 2024, section 2), with the dense stream's targets of its global propagation.

The ridge determines how closely the calibration samples are fitted. It is chosen by the error on held-out samples,
which their own Gram matrices give in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.finite import all_finite
from reprune.math.masking import mask_
from reprune.math.statistics import Paired

RIDGES = (1.0, 0.3, 0.1, 0.03)
"""Tried in this order, from the one that changes least, until the held-out error rises."""
_TRIAL = 3  # iterations at each of these, enough to tell which is best


@dataclass(frozen=True)
class Refit:
    """The outcome of fitting a group's matrices."""

    weights: list[Tensor]  # each (rows_i, columns), float32, zero where masked
    ridge: float | None  # the one chosen; None if the pruner's weights were the best


@final
@dataclass(frozen=True)
class LeastSquares:
    """Masked least squares by conjugate gradients."""

    ridge: float | None = None
    """A share of the mean diagonal of X'X; None: chosen by the held-out error."""
    iterations: int = 6
    """Iterations at the chosen ridge, from the weights of its trial; twice as many if `ridge` is given."""

    def refit(
        self,
        pruned: Sequence[Tensor],
        masks: Sequence[Tensor],
        dense: Sequence[Tensor],
        calibration: Paired,
        heldout: Paired,
    ) -> Refit:
        """Fit the matrices of one group.

        Args:
            pruned: the weights that the pruner left, (rows_i, columns) each, float32.
            masks: bool, of the same shapes, True where kept.
            dense: the dense model's matrices, of the same shapes.
            calibration: sums over the calibration samples of the group's inputs in both models.
            heldout: the same over the held-out samples.

        Raises:
            NumericalError: the inputs are not finite.
        """
        rows = [len(one) for one in pruned]
        start, mask, D = torch.cat(list(pruned)), torch.cat(list(masks)), torch.cat(list(dense))
        G, right = calibration.gram.matrix, D @ calibration.cross.T  # (columns, columns), (rows, columns)
        if not (all_finite(G) and all_finite(right)):
            raise NumericalError("the inputs of this group hold NaN or infinite values, which least squares cannot use")
        mean = float(G.diagonal().mean())
        if mean == 0.0:  # all inputs of this group are zero
            return Refit(list(pruned), None)
        heldout_right = D @ heldout.cross.T
        W, best, chosen = start, start, self.ridge
        lowest = quadratic_error(start, heldout.gram.matrix, heldout_right)
        for ridge in RIDGES if self.ridge is None else ():
            W = solve(G, right, W, start, mask, ridge * mean, _TRIAL)
            error = quadratic_error(W, heldout.gram.matrix, heldout_right)
            if not error < lowest:
                break
            best, chosen, lowest = W, ridge, error
        if chosen is not None:
            iterations = self.iterations if self.ridge is None else 2 * self.iterations
            best = solve(G, right, best, start, mask, chosen * mean, iterations)
        return Refit(list(best.split(rows)), chosen)


def solve(G: Tensor, right: Tensor, W: Tensor, prior: Tensor, mask: Tensor, ridge: float, iterations: int) -> Tensor:
    """Conjugate gradients on each row of W (rows, columns) at once, with Jacobi's preconditioner.

    Minimizes, over W that are zero outside the mask, <W G, W> - 2 <W, right> + ridge ||W - prior||^2.

    Args:
        G: X'X, (columns, columns), float32, positive semidefinite.
        right: D Z'X, (rows, columns).
        W: the starting point, zero outside the mask; not changed.
        prior: the weights that the ridge pulls W towards, zero outside the mask.
        mask: bool, of the shape of W.
        ridge: at least 0.
        iterations: the maximum; fewer if all rows are solved to float32 accuracy.
    """
    residual = mask_(right + ridge * prior - W @ G - ridge * W, mask)
    return descend_(W.clone(), residual, G, mask, torch.full_like(G.diagonal(), ridge), iterations)


def descend_(W: Tensor, residual: Tensor, G: Tensor, mask: Tensor, ridge: Tensor, iterations: int) -> Tensor:
    """The conjugate gradients of `solve`, for a ridge of each column's own, (columns,).

    Args:
        W: the starting point, zero outside the mask; overwritten by the result, which is also returned.
        residual: half the objective's negative gradient there, zero outside the mask; overwritten.
        G: as for `solve`, or in bfloat16; products with it are in its dtype.
        mask, iterations: as for `solve`.
    """
    inverse = 1.0 / (G.diagonal() + ridge).clamp_min(torch.finfo(W.dtype).tiny)
    direction = residual * inverse
    power = (residual * direction).sum(dim=1, keepdim=True)  # (rows, 1)
    enough = power * torch.finfo(W.dtype).eps ** 2
    for _ in range(iterations):
        if bool((power <= enough).all()):
            break
        product = mask_((direction.to(G.dtype) @ G).to(W.dtype).addcmul_(direction, ridge), mask)
        curvature = (direction * product).sum(dim=1, keepdim=True)
        step = torch.where(curvature > 0, power / curvature, 0.0)
        W.addcmul_(direction, step)
        residual.addcmul_(product, step, value=-1.0)
        scaled = torch.mul(residual, inverse, out=product)
        before, power = power, (residual * scaled).sum(dim=1, keepdim=True)
        direction.mul_(torch.where(before > 0, power / before, 0.0)).add_(scaled)
    return W


def quadratic_error(W: Tensor, G: Tensor, right: Tensor) -> float:
    """||X W' - Z D'||^2 up to a constant: <W G, W> - 2 <W, right>, summed in float64."""
    return float(((W @ G - 2.0 * right) * W).sum(dtype=torch.float64))
