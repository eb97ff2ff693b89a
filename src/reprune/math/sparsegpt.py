"""SparseGPT: the OBS solution of the remaining weights, column by column (Frantar and Alistarh, 2023).

For one row w with Gram matrix H, pruning weight p at the least cost and correcting the others gives

    cost   = w_p^2 / [H^-1]_pp
    update = -(w_p / [H^-1]_pp) * H^-1[:, p]

Columns are pruned from left to right, and only those not yet pruned may still change, so the inverse needed is that of
H restricted to the columns F from p on. The upper Cholesky factor U of H^-1 holds it for every p: U_pp^2 is
[H_F^-1]_pp, and U[p, p:] / U_pp is the column H_F^-1[:, p] / [H_F^-1]_pp. All rows share H, hence U.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.finite import all_finite
from reprune.math.masking import mask_weights_
from reprune.math.patterns import Pattern
from reprune.math.pruner import Pruned, Pruner
from reprune.math.statistics import Gram

_NARROW = 16  # columns: few enough that they stay in the processor's cache
_FEW = 0.01  # the share of inputs that are always 0 up to which nobody would notice the higher sparsity
_DIRECT = 128  # columns: up to this size LAPACK factorizes; beyond it, halves and matrix products are faster


@final
@dataclass(frozen=True)
class SparseGPT(Pruner[Gram]):
    """Score w^2 / diag(U)^2 in blocks of columns, with the OBS update of all columns to the right.

    Unstructured masks are chosen once per block of `block_size` columns, N:M masks once per group of M, both from the
    weights as updated so far.
    """

    damping: float = 0.01
    """Added to the diagonal of H, as a share of its mean."""
    block_size: int = 128
    """Columns between two lazy updates of all columns to the right."""

    def statistics(self, columns: int, device: torch.device) -> Gram:
        return Gram(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: Gram, pattern: Pattern) -> list[Pruned]:
        factor, dead, notes = self._factor(statistics)
        # The matrices share U, so their rows are stacked; columns come first, so that one column is contiguous.
        stacked = torch.cat([weight.T for weight in weights], dim=1)  # (columns, all rows)
        stacked[dead] = 0.0
        if (idle := int(dead.sum())) > _FEW * len(dead):
            notes = (*notes, f"{idle} of {len(dead)} inputs are always 0: all their weights were set to 0 too")
        rows = [weight.shape[0] for weight in weights]
        mask = self._sweep_(stacked, factor, rows, pattern)
        mask_weights_(stacked, mask)
        pruned = zip(stacked.T.split(rows), mask.T.split(rows), strict=True)
        return [Pruned(weight.contiguous(), kept.contiguous(), notes) for weight, kept in pruned]

    def _factor(self, statistics: Gram) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """The upper Cholesky factor U of H^-1, the columns whose input is always zero, and notes.

        While H is not positive definite, the damping is raised tenfold, up to the mean diagonal.
        """
        if not all_finite(statistics.matrix):
            raise NumericalError(
                "the inputs of this group hold NaN or infinite values, so SparseGPT cannot use their Gram matrix"
            )
        dead = statistics.matrix.diagonal() == 0
        damping = self.damping
        while damping <= max(self.damping, 1.0):
            upper = _upper_factor(statistics.matrix, damping)
            if upper is not None:
                raised = f"damping raised from {self.damping:g} to {damping:g}: the Gram matrix is near singular"
                return upper, dead, (raised,) if damping > self.damping else ()
            damping *= 10.0
        raise NumericalError(
            f"the Gram matrix of this group is not positive definite even with damping of {damping / 10.0:g} x its "
            "mean diagonal; calibrate on more or other text"
        )

    def _sweep_(self, W: Tensor, U: Tensor, rows: list[int], pattern: Pattern) -> Tensor:
        """Prune W (columns, rows) in place; returns its mask (columns, rows), bool."""
        columns = W.shape[0]
        mask = torch.ones_like(W, dtype=torch.bool)
        width = max(self.block_size // pattern.group, 1) * pattern.group
        # The same scheme within a block: columns nearby are updated at once, those beyond after `narrow` columns.
        narrow = max(_NARROW // pattern.group, 1) * pattern.group
        sweep = _one_by_one_ if W.device.type == "cpu" else _at_once_
        for start in range(0, columns, width):
            end = min(start + width, columns)
            block, kept, factor = W[start:end], mask[start:end], U[start:end, start:end]
            step = pattern.group if pattern.group > 1 else end - start  # columns whose masks are chosen at once
            costs = factor.diagonal().square().unsqueeze(1)  # (block columns, 1)
            scales, errors = torch.empty_like(block), torch.empty_like(block)
            for near in range(0, end - start, narrow):
                far = min(near + narrow, end - start)
                for first in range(near, far, min(step, narrow)):
                    if first % step == 0:
                        chosen = slice(first, first + step)
                        scores = block[chosen].square() / costs[chosen]
                        for part, into in zip(scores.split(rows, 1), kept[chosen].split(rows, 1), strict=True):
                            into.copy_(pattern.keep(part.T, "matrix").T)
                        scales[chosen] = ~kept[chosen] / factor.diagonal()[chosen].unsqueeze(1)
                    last = min(first + min(step, narrow), far)
                    here = slice(first, last)
                    sweep(block[here], errors[here], scales[here], factor[here, here])
                    block[last:far].addmm_(factor[here, last:far].T, errors[here], alpha=-1.0)
                block[far:].addmm_(factor[near:far, far:].T, errors[near:far], alpha=-1.0)
            W[end:].addmm_(U[start:end, end:].T, errors, alpha=-1.0)
        return mask


def _one_by_one_(W: Tensor, errors: Tensor, scales: Tensor, U: Tensor) -> None:
    """Sweep a few columns whose masks are chosen; each column is updated for those before it when its turn comes.

    Uses NumPy, whose calls take a third of the time of PyTorch's: on so few columns, nothing else counts.

    Args:
        W: (columns, rows), on the CPU; each column is updated for the pruning of those before it.
        errors: (columns, rows), output: what each column loses, divided by U_pp.
        scales: (columns, rows): 1 / U_pp where pruned, 0 where kept.
        U: the factor of these columns (columns, columns).
    """
    weights, lost, by, upper = (one.detach().numpy() for one in (W, errors, scales, U))
    with np.errstate(all="ignore"):  # saving the weights reports those that are not finite
        for column in range(len(weights)):
            if column:
                weights[column] -= upper[:column, column] @ lost[:column]
            np.multiply(weights[column], by[column], out=lost[column])


def _at_once_(W: Tensor, errors: Tensor, scales: Tensor, U: Tensor) -> None:
    """The same by one triangular solve for each row, all in one call: a GPU is slow at a call for every column.

    Let s be the scales of a row w and V the part of U above its diagonal. The row's errors are e = s * (w - V' e), so
    (1 + diag(s) V') e = s * w.
    """
    V = U.triu(1)
    systems = scales.T.unsqueeze(2) * V.T  # (rows, columns, columns)
    right = (scales * W).T.unsqueeze(2)  # (rows, columns, 1)
    found = torch.linalg.solve_triangular(systems, right, upper=False, unitriangular=True)
    errors.copy_(found.squeeze(2).T)
    W.addmm_(V.T, errors, alpha=-1.0)


def _upper_factor(H: Tensor, damping: float) -> Tensor | None:
    """The upper Cholesky factor of the inverse of H with a damped diagonal; None if that is not positive definite.

    Besides H, at most two matrices of its size exist at a time: for a wide group, these take most of the memory.
    """
    # Reversed in both dimensions, H is L L' with L lower; L^-1, reversed again, is the upper factor of H^-1.
    backwards = H.flip(0, 1)
    diagonal = backwards.diagonal()  # a view: writing to it writes to the matrix
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    if not _to_inverse_factor_(backwards):
        return None
    upper = backwards.flip(0, 1)
    del backwards, diagonal
    return upper if all_finite(upper) else None


def _to_inverse_factor_(A: Tensor) -> bool:
    """Overwrite A = L L' with the inverse of its lower Cholesky factor L; returns whether A is positive definite.

    It recurses on halves, so that nearly all of the work is matrix products:

        A = | A1  .  |    L^-1 = | L1^-1                 0     |    with B L1' = A21 and L2 L2' = A2 - B B'
            | A21 A2 |           | -L2^-1 B L1^-1        L2^-1 |

    Only values on and below the diagonal are read.
    """
    size = len(A)
    if size <= _DIRECT:
        factor, failed = torch.linalg.cholesky_ex(A)
        if not failed:
            one = torch.eye(size, dtype=A.dtype, device=A.device)
            A.copy_(torch.linalg.solve_triangular(factor, one, upper=False))
        return not failed
    half = size // 2
    upper, lower = slice(0, half), slice(half, size)
    if not _to_inverse_factor_(A[upper, upper]):
        return False
    below = A[lower, upper] @ A[upper, upper].T  # B
    A[lower, lower].addmm_(below, below.T, alpha=-1.0)
    if not _to_inverse_factor_(A[lower, lower]):
        return False
    A[upper, lower] = 0.0
    torch.mm(A[lower, lower] @ below, A[upper, upper], out=A[lower, upper])
    A[lower, upper].neg_()
    return True
