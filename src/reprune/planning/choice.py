"""Which linears of a block are pruned and which stay dense. Knows their names only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from reprune.model.linears import Linear
from reprune.planning.axes import Part


@final
@dataclass(frozen=True)
class Choice:
    """What a recipe chooses of each block."""

    only: Part = "all"
    """`attention`: the linears of modules whose name says so; `mlp`: all the others (the paper's Table 7)."""
    include: tuple[str, ...] = ()
    """Patterns of names that are pruned, and no others; none: all are."""
    exclude: tuple[str, ...] = ()
    """Patterns of names that stay dense. See `fits_place` for what a pattern fits."""

    def leaves_dense(self, index: int, name: str) -> bool:
        """Whether the matrix of that name within a block stays as it is."""
        if self.only != "all" and is_attention(name) != (self.only == "attention"):
            return True
        if self.include and not any(fits_place(index, name, pattern) for pattern in self.include):
            return True
        return any(fits_place(index, name, pattern) for pattern in self.exclude)

    def kept_dense(self, index: int, linears: Sequence[Linear]) -> set[str]:
        """The names of those linears of a block that stay dense."""
        return {linear.name for linear in linears if self.leaves_dense(index, linear.name)}


def fits_place(index: int, name: str, pattern: str) -> bool:
    """Whether a pattern fits a name within a block, the last part of it, or it with the block's number before.

    `mlp.*` fits the MLP of all blocks, `down_proj` one linear of all, `0.*` all linears of block 0.
    """
    return fits(name, pattern) or fnmatchcase(f"{index}.{name}", pattern)


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a whole name or the last part of it; of an expert's matrix, with its number or without."""
    return any(
        fnmatchcase(one, pattern) or fnmatchcase(one.rsplit(".", 1)[-1], pattern)
        for one in (name, of_all_experts(name))
    )


def of_all_experts(name: str) -> str:
    """The name of a linear, of an expert's matrix without its number."""
    return re.sub(r"\.\d+$", "", name)


def is_attention(name: str) -> bool:
    """Whether a linear belongs to a block's attention, by its name: self_attn.q_proj, attention.dense, attn.c_proj."""
    return any("attn" in part or "attention" in part for part in name.lower().split("."))
