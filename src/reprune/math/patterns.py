"""What a mask may look like: `Unstructured(0.5)`, `NM(2, 4)`. Knows nothing of where scores come from.

Masks are boolean, True where a weight is kept. All choices are deterministic: among equal scores the one with
the lower index is pruned first (unstructured) or kept first (N:M).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from reprune.errors import InputError, NumericalError

Scope = Literal["matrix", "row"]
"""Which weights compete with each other: all of a matrix, or those of one output row."""
_LONG, _SAMPLE = 2**16, 2**12  # rows this long are searched by a sample first; about the sample's size
_FEW = 2**22  # pairs of weights that a GPU compares at once


class Pattern(ABC):
    """The set of masks that a run may choose from."""

    @property
    @abstractmethod
    def sparsity(self) -> float:
        """The share of weights that are pruned, in (0, 1)."""

    @property
    @abstractmethod
    def group(self) -> int:
        """How many consecutive columns belong together (1 if any weight may be pruned)."""

    @abstractmethod
    def keep(self, scores: Tensor, scope: Scope) -> Tensor:
        """Choose the mask that keeps the weights of highest score, as far as the pattern allows.

        Args:
            scores: importance of each weight (rows, columns), any float dtype; higher ones are kept.
            scope: which weights compete; a pattern with its own groups ignores it.

        Returns:
            The mask (rows, columns), bool, True where kept.

        Raises:
            NumericalError: the pattern is unstructured and some scores are NaN.
        """

    def allows(self, mask: Tensor) -> bool:
        """Whether no group of a mask (rows, columns), bool, keeps more than it may."""
        del mask
        return True

    def check(self, columns: int, name: str) -> None:
        """Raise `InputError` if a matrix with this many input columns cannot have this pattern."""
        if columns % self.group:
            last = name.rsplit(".", 1)[-1]
            raise InputError(
                f"{name}: the pattern {self} needs a multiple of {self.group} input columns, but this matrix has "
                f"{columns}. Choose another pattern, or leave the matrix dense with "
                f"--set 'exclude=[\"{name if last == 'weight' or last.isdigit() else last}\"]'."
            )


@final
@dataclass(frozen=True)
class Unstructured(Pattern):
    """`fraction` of the weights are pruned, wherever they are."""

    fraction: float

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction < 1.0:
            raise InputError(
                f"sparsity: expected a number above 0 and below 1, such as 0.5, or N:M; got {self.fraction:g}."
            )

    @property
    def sparsity(self) -> float:
        return self.fraction

    @property
    def group(self) -> int:
        return 1

    def keep(self, scores: Tensor, scope: Scope) -> Tensor:
        if scope == "matrix":
            return self._keep_rows(scores.reshape(1, -1)).reshape(scores.shape)
        return self._keep_rows(scores)

    def _keep_rows(self, scores: Tensor) -> Tensor:
        """Prune exactly round(fraction * columns) of each row of `scores` (rows, columns)."""
        pruned = round(self.fraction * scores.shape[1])
        if pruned == 0:
            return torch.ones_like(scores, dtype=torch.bool)
        threshold = _kth_lowest(scores, pruned)  # (rows, 1)
        keep = scores > threshold
        surplus = scores.shape[1] - pruned - keep.sum(dim=1)  # how many of the ties are kept too
        rows = surplus.nonzero().flatten().tolist()
        if rows and bool(scores.isnan().any()):  # NaN is above no threshold
            raise NumericalError("some scores are NaN, so the weights cannot be ranked")
        for row in rows:
            ties = (scores[row] == threshold[row]).nonzero().flatten()
            keep[row, ties[len(ties) - int(surplus[row]) :]] = True
        return keep

    def __str__(self) -> str:
        return f"{self.fraction:g}"


def _kth_lowest(scores: Tensor, k: int) -> Tensor:
    """The k-th lowest score of each row of (rows, columns), as (rows, 1)."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:  # NumPy takes a fifth of the time
        return torch.from_numpy(np.partition(scores.detach().numpy(), k - 1, axis=1)[:, k - 1 : k])
    if len(scores) == 1 and scores.shape[1] >= _LONG:
        return _kth_of_many(scores[0], k).reshape(1, 1)
    return scores.kthvalue(k, dim=1, keepdim=True).values


def _kth_of_many(row: Tensor, k: int) -> Tensor:
    """The k-th lowest score of one long row (columns,).

    A sample of the row gives the range in which it should lie, and only scores in this range are searched: PyTorch
    selects from one row by a single thread block. If the sample misled, the whole row is searched, so the result is
    always exact.
    """
    sample = row[:: row.numel() // _SAMPLE | 1].sort().values
    share = k / row.numel()
    place = share * len(sample)
    margin = 4.0 * math.sqrt(len(sample) * share * (1.0 - share)) + 2.0  # four standard deviations
    low = sample[max(int(place - margin), 0)]
    high = sample[min(int(place + margin), len(sample) - 1)]
    below, near = int((row < low).sum()), row[(row >= low) & (row <= high)]
    if below < k <= below + len(near):
        return near.kthvalue(k - below).values
    return row.kthvalue(k).values


@final
@dataclass(frozen=True)
class NM(Pattern):
    """`kept` of every `of` consecutive inputs of a row are kept (2:4 is `NM(2, 4)`)."""

    kept: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.kept < self.of:
            raise InputError(
                f"sparsity: expected N:M with 0 < N < M, such as 2:4 (2 of every 4 kept); got {self.kept}:{self.of}."
            )

    @property
    def sparsity(self) -> float:
        return 1.0 - self.kept / self.of

    @property
    def group(self) -> int:
        return self.of

    def keep(self, scores: Tensor, scope: Scope) -> Tensor:
        del scope  # weights compete within their group
        groups = scores.reshape(scores.shape[0], -1, self.of)  # (rows, groups, of)
        few = scores.device.type != "cpu" and scores.numel() * self.of <= _FEW
        rank = _ranks_at_once(groups) if few else _ranks(groups)
        return (rank < self.kept).reshape(scores.shape)

    def allows(self, mask: Tensor) -> bool:
        if mask.shape[1] % self.of:
            return False
        return bool((mask.reshape(mask.shape[0], -1, self.of).sum(dim=-1) <= self.kept).all())

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


def _ranks(groups: Tensor) -> Tensor:
    """How many members of its group (rows, groups, of) come before each: higher ones, and equal ones to its left."""
    rank = torch.zeros_like(groups, dtype=torch.int16)
    for other in range(groups.shape[2]):
        rival = groups[:, :, other : other + 1]
        rank += rival > groups
        rank[:, :, other + 1 :] += rival == groups[:, :, other + 1 :]
    return rank


def _ranks_at_once(groups: Tensor) -> Tensor:
    """The same in fewer operations, on which time depends where a GPU has few numbers; it holds all pairs."""
    one, rival = groups.unsqueeze(3), groups.unsqueeze(2)  # (rows, groups, of, 1) and (rows, groups, 1, of)
    left = torch.ones(groups.shape[2], groups.shape[2], dtype=torch.bool, device=groups.device).tril(-1)
    return ((rival > one) | ((rival == one) & left)).sum(dim=3)


def parse_pattern(text: str) -> Pattern:
    """Read "0.5", "50%" or "2:4" into a pattern; raises `InputError` for anything else."""
    cleaned = text.strip()
    try:
        if ":" in cleaned:
            kept, of = cleaned.split(":")
            return NM(int(kept), int(of))
        if cleaned.endswith("%"):
            return Unstructured(float(Decimal(str(float(cleaned[:-1]))) / 100))  # 33.3% is 0.333, to the bit
        return Unstructured(float(cleaned))
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"sparsity: expected a fraction such as 0.5 or a pattern such as 2:4 or 4:8; got {text!r}."
        ) from None
