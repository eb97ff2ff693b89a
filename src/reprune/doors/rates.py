"""What is said of a learning rate that is far from the weights' size, as a run shows it. Knows records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reprune.doors.formats import percent
from reprune.math.rate import unusual_steps


def said_of_rate(windows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """What is wrong with the rate of windows as they are on record, and what to do; None where nothing is."""
    begun = [window["epochs"][0].get("relative_lr") for window in windows if window["epochs"]]
    unusual = unusual_steps([window.get("relative_lr") for window in windows], begun)
    if unusual is None:
        return None
    rate, steps = unusual
    return (
        f"{percent(rate)} of the kept weights' root mean square: {steps} steps",
        "than usual; --lr 1% goes with the weights",
    )
