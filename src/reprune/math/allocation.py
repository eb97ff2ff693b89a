"""Shares a sparsity out over blocks: each gets as much as it bears, and the whole has the given sparsity.

Knows numbers only: how many weights each block has, and what was measured on it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

STEP = 0.005  # how much `by_error` raises a block's sparsity at a time
_HIGHEST = 700.0  # an exponent whose exponential is still finite
LEAST, MOST = 1e-6, 0.99  # the range of a block's sparsity


def outlier_share(matrices: Callable[[], Iterable[tuple[Tensor, Tensor]]], times: float = 5.0) -> float:
    """The share of a block's Wanda scores that are more than `times` their mean (OWL, Yin et al. 2024, eq. 1).

    The mean is over the scores of all matrices, so all outliers may be in one of them.

    Args:
        matrices: called twice; yields weights (rows, columns) and the root mean squares of their inputs (columns,).
        times: a score above this multiple of the mean is an outlier.
    """
    total, count, above = 0.0, 0, 0
    for weight, norms in matrices():
        total += float((weight.abs() * norms).sum(dtype=torch.float64))
        count += weight.numel()
    for weight, norms in matrices():
        above += int((weight.abs() * norms > times * total / count).sum())
    return above / max(count, 1)


def by_outliers(shares: Sequence[float], weights: Sequence[int], sparsity: float, spread: float) -> list[float]:
    """OWL (Yin et al. 2024, section 3.3): the more outliers a block has, the denser it stays.

    Args:
        shares: for each block, the share of scores that are outliers.
        weights: for each block, how many weights may be pruned.
        sparsity: the sparsity of all blocks together.
        spread: half the largest difference between two blocks' sparsities (the paper's lambda).
    """
    total = sum(weights)
    known = [share for share, count in zip(shares, weights, strict=True) if count]
    if not known:
        return [sparsity] * len(shares)
    low, high = min(known), max(known)  # blocks that may not be pruned do not count
    stretched = [2.0 * spread * (share - low) / (high - low) if high > low else 0.0 for share in shares]
    middle = sum(value * count for value, count in zip(stretched, weights, strict=True)) / total
    return _settled([sparsity - (value - middle) for value in stretched], weights, sparsity)


def by_error(curves: Sequence[Sequence[tuple[float, float]]], weights: Sequence[int], sparsity: float) -> list[float]:
    """Step by step, prune more of the block whose error rises least per weight, until the whole has the sparsity.

    If errors rise ever faster, this gives the least sum of errors: the last weight pruned costs the same in all blocks.
    A block whose error rises fast at first and slowly later may stop early, although later steps would have paid off.

    Args:
        curves: for each block, (sparsity, error) at two or more rising sparsities, all errors above 0. The logarithm of
            the error is interpolated linearly between them; no block goes beyond them.
        weights: for each block, how many weights may be pruned.
        sparsity: the sparsity of all blocks together, within the range of the curves.
    """
    if not sum(weights):
        return [sparsity] * len(curves)
    found = [curve[0][0] for curve in curves]
    budget = sparsity * sum(weights) - sum(s * count for s, count in zip(found, weights, strict=True))

    def price(index: int) -> float:
        here = found[index]
        return (_error(curves[index], here + STEP) - _error(curves[index], here)) / weights[index]

    queue = [(price(index), index) for index in range(len(curves)) if weights[index]]
    heapq.heapify(queue)
    while queue and budget > 0:
        _, index = heapq.heappop(queue)
        step = min(STEP, curves[index][-1][0] - found[index], budget / weights[index])
        if step <= 1e-12:
            continue
        found[index] += step
        budget -= step * weights[index]
        heapq.heappush(queue, (price(index), index))
    return _settled(found, weights, sparsity)


def _error(curve: Sequence[tuple[float, float]], sparsity: float) -> float:
    """The error at a sparsity; its logarithm is interpolated linearly between the points on either side."""
    pairs = list(itertools.pairwise(curve))
    (s0, e0), (s1, e1) = next((pair for pair in pairs if sparsity <= pair[1][0]), pairs[-1])
    part = (sparsity - s0) / (s1 - s0) if s1 > s0 else 1.0  # two points may round to the same number
    logarithm = (1.0 - part) * math.log(max(e0, 1e-30)) + part * math.log(max(e1, 1e-30))
    return math.exp(min(logarithm, _HIGHEST))


def _settled(found: Sequence[float], weights: Sequence[int], sparsity: float) -> list[float]:
    """Shift all sparsities equally, each held within `LEAST` and `MOST`, so that the whole has the given one."""
    total, most = sum(weights), max(MOST, sparsity)
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        moved = [min(max(value + middle, LEAST), most) for value in found]
        if sum(value * count for value, count in zip(moved, weights, strict=True)) < sparsity * total:
            low = middle
        else:
            high = middle
    return [round(min(max(value + high, LEAST), most), 6) for value in found]
