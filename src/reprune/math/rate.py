"""What a learning rate is beside the weights it moves: Adam's steps are of its size, whatever the gradients are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median
from typing import Literal

import torch

from reprune.math.solver import Objective

_USUAL = (0.0025, 0.04)
"""As shares of the kept weights' root mean square."""


def kept_rms(problem: Objective) -> float:
    """The root mean square of the kept weights of a problem's matrices, all together that are pruned in this run.

    Where none is it is that of all its linears, and where there are none of all its parameters.
    """
    pairs = list(zip(problem.parameters, problem.masks, strict=True))
    sized = problem.sized or [mask is not None for mask in problem.masks]
    counted = [pair for pair, counts in zip(pairs, sized, strict=True) if counts] or pairs
    power = sum(float(torch.linalg.vector_norm(parameter.detach())) ** 2 for parameter, _ in counted)
    kept = sum(parameter.numel() if mask is None else int(mask.sum()) for parameter, mask in counted)
    return math.sqrt(power / max(kept, 1))


def unusual_steps(
    asked: Iterable[float | None], begun: Iterable[float | None]
) -> tuple[float, Literal["shorter", "longer"]] | None:
    """What a run's learning rate makes of Adam's steps, where it is far from 1 % of the weights.

    Args:
        asked: the rate that each window was to begin with, over the root mean square of its kept weights; None where
            it is not known.
        begun: the same of the rate that it began with, which is lower where first steps are tried (`first_step`).

    Returns:
        The median rate, and what steps are by it; None where it is not far.
    """
    shortest, longest = _USUAL
    if (rate := _median(asked)) is not None and rate < shortest:
        return rate, "shorter"
    if (rate := _median(begun)) is not None and rate > longest:
        return rate, "longer"
    return None


def _median(rates: Iterable[float | None]) -> float | None:
    there = [rate for rate in rates if rate is not None and math.isfinite(rate)]
    return median(there) if there else None
