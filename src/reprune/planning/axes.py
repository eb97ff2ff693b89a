"""The names of pruners, rungs and parts of a block, in the order of the paper's tables. Knows names only."""

from __future__ import annotations

from typing import Literal, get_args

Rung = Literal["LR", "BR", "BR+GP", "BR+GP+CR", "auto"]
Part = Literal["all", "attention", "mlp"]

RUNGS: tuple[str, ...] = get_args(Rung)
LADDER, AUTO = RUNGS[:-1], RUNGS[-1]
"""The paper's rungs, each of which fits the calibration samples more closely than the one before; and `auto`."""
PARTS: tuple[str, ...] = get_args(Part)
ALL = PARTS[0]
PRUNERS = ("magnitude", "wanda", "sparsegpt")
"""reprune's own pruners; those of other packages come after them."""


def place(names: tuple[str, ...], name: str) -> tuple[int, str]:
    """A sort key: the given names first, in their order, then all others in alphabetical order."""
    return names.index(name) if name in names else len(names), name
