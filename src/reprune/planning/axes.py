"""What a run's pruner, rung and part of a block are called, in the order of the paper's tables. Knows names only."""

from __future__ import annotations

from typing import Literal, get_args

Rung = Literal["LR", "BR", "BR+GP", "BR+GP+CR", "auto"]
Part = Literal["all", "attention", "mlp"]

RUNGS: tuple[str, ...] = get_args(Rung)
LADDER, AUTO = RUNGS[:-1], RUNGS[-1]
"""The paper's rungs, each of which fits the calibration samples more closely than the one before; `auto` is none."""
PARTS: tuple[str, ...] = get_args(Part)
ALL = PARTS[0]
PRUNERS = ("magnitude", "wanda", "sparsegpt")
"""reprune's own; those of other packages come after them."""


def place(names: tuple[str, ...], name: str) -> tuple[int, str]:
    """Orders what is called by names as these are ordered, and others after them, by the alphabet."""
    return names.index(name) if name in names else len(names), name
