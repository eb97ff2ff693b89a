"""Which pattern each linear gets: one for all, others by name, and by block where sparsity is shared out unevenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from reprune.math.patterns import Pattern, Unstructured
from reprune.planning.choice import fits_place


@final
@dataclass(frozen=True)
class Sparsities:
    """The patterns of a run."""

    base: Pattern
    by_name: Mapping[str, Pattern] = field(default_factory=dict)
    """By patterns of names, as `exclude` has them; the first that fits decides."""
    by_block: Sequence[float] = ()
    """The share that is pruned of each block's weights that no name decides on; empty: `base` for all."""

    def of(self, index: int, name: str) -> Pattern:
        """The pattern of a linear of a block."""
        for given, pattern in self.by_name.items():
            if fits_place(index, name, given):
                return pattern
        return Unstructured(self.by_block[index]) if self.by_block else self.base

    def named(self, index: int, name: str) -> bool:
        """Whether a name decides it."""
        return any(fits_place(index, name, given) for given in self.by_name)

    def allocated(self, shares: Sequence[float]) -> Sparsities:
        """The same, with a share of its own for each block."""
        return replace(self, by_block=tuple(shares))
