"""How a learning rate is written: as a number, or as a share of the weights that it moves. Knows no optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class Rate:
    """A learning rate."""

    value: float
    relative: bool = False
    """Whether `value` is a share of the root mean square of the weights."""


def parse_rate(given: Any) -> Rate:
    """Read `2e-4`, or `1%` of the weights' root mean square; raises `ValueError` where it is neither."""
    text = str(given).strip()
    relative = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("expected a number above 0, or a share of the weights' root mean square, such as 1%")
    return Rate(value / 100, relative) if relative else Rate(value)
