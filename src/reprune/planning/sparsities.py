"""The pattern of each linear: one for all, others by name, and one per block if sparsity is allocated unevenly."""

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
    """By pattern of names, as in `exclude`; the first that fits decides."""
    by_block: Sequence[float] = ()
    """Each block's sparsity, for the linears that no name in `by_name` fits; empty: `base` for all blocks."""

    def of(self, index: int, name: str) -> Pattern:
        """The pattern of the linear of this name in block `index`."""
        return self.named(index, name) or (Unstructured(self.by_block[index]) if self.by_block else self.base)

    def named(self, index: int, name: str) -> Pattern | None:
        """The pattern that a name in `by_name` decides for the linear; None if none fits it."""
        found = self.naming(index, name)
        return None if found is None else self.by_name[found]

    def naming(self, index: int, name: str) -> str | None:
        """The name in `by_name` that decides the linear's pattern; None if none fits it."""
        return next((given for given in self.by_name if fits_place(index, name, given)), None)

    def allocated(self, shares: Sequence[float]) -> Sparsities:
        """A copy with a sparsity for each block."""
        return replace(self, by_block=tuple(shares))
