"""Notes on learning rates that do not fit the weights' size. Reads records; loads no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

from reprune.doors.formats import percent

_USUAL = (0.0025, 0.04)
"""The usual range of rates, as shares of the kept weights' root mean square."""


def said_of_rate(windows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """What is wrong with the learning rate of windows on record, and what to do; None if nothing is wrong."""
    # A window in which no epoch went well began with the rate that was asked for.
    begun = [(window["epochs"] or [window])[0].get("relative_lr") for window in windows]
    unusual = unusual_steps([window.get("relative_lr") for window in windows], begun)
    if unusual is None:
        return None
    rate, steps = unusual
    return (
        f"{percent(rate)} of the kept weights' root mean square: {steps} steps",
        "than usual; --lr 1% scales with the weights",
    )


def unusual_steps(
    asked: Iterable[float | None], begun: Iterable[float | None]
) -> tuple[float, Literal["shorter", "longer"]] | None:
    """Whether a run's learning rate, far from 1 % of the weights, makes Adam's steps unusually long or short.

    Args:
        asked: for each window the requested first rate, over the root mean square of its kept weights; None if
            unknown.
        begun: the same for the actual first rate, which is lower if first steps are tried (`first_step`).

    Returns:
        The median rate, and how steps are with it; None if they are as usual.
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
