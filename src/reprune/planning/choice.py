"""Which linears of a block are pruned and which stay dense. Knows their names only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, final

from reprune.model.linears import Linear

Part = Literal["all", "attention", "mlp"]


@final
@dataclass(frozen=True)
class Choice:
    """What a recipe chooses of each block."""

    only: Part = "all"
    """`attention`: the linears of modules whose name says so; `mlp`: all the others (the paper's Table 7)."""
    exclude: tuple[str, ...] = ()
    """Patterns of names that stay dense; each fits a whole name within the block, or its last part."""

    def leaves_dense(self, name: str) -> bool:
        """Whether the matrix of that name within a block stays as it is."""
        if self.only != "all" and is_attention(name) != (self.only == "attention"):
            return True
        return any(fits(name, pattern) for pattern in self.exclude)

    def kept_dense(self, linears: Sequence[Linear]) -> set[str]:
        """The names of those linears that stay dense."""
        return {linear.name for linear in linears if self.leaves_dense(linear.name)}


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a whole name or the last part of it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rsplit(".", 1)[-1], pattern)


def is_attention(name: str) -> bool:
    """Whether a linear belongs to a block's attention, by its name: self_attn.q_proj, attention.dense, attn.c_proj."""
    return any("attn" in part or "attention" in part for part in name.lower().split("."))
