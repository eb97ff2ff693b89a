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
    """A recipe's choice of the linears that are pruned in each block."""

    only: Part = "all"
    """`attention`: the linears of modules named as attention; `mlp`: all others (the paper's Table 7)."""
    include: tuple[str, ...] = ()
    """Patterns of names; only linears that fit one are pruned. Empty: no linear is left out."""
    exclude: tuple[str, ...] = ()
    """Patterns of names that stay dense. See `fits_place` for what a pattern fits."""

    def leaves_dense(self, index: int, name: str) -> bool:
        """Whether the matrix of this name in block `index` stays dense."""
        if self.only != "all" and is_attention(name) != (self.only == "attention"):
            return True
        if self.include and not any(fits_place(index, name, pattern) for pattern in self.include):
            return True
        return any(fits_place(index, name, pattern) for pattern in self.exclude)

    def kept_dense(self, index: int, linears: Sequence[Linear]) -> set[str]:
        """The names of the linears of a block that stay dense."""
        return {linear.name for linear in linears if self.leaves_dense(index, linear.name)}


def fits_place(index: int, name: str, pattern: str) -> bool:
    """Whether a pattern fits a name within a block, its last part, or the name with the block's number before it.

    `mlp.*` fits the MLP of every block, `down_proj` one linear of every block, `0.*` all linears of block 0.
    """
    numbered = (f"{index}.{one}" for one in (name, of_all_experts(name)))
    return fits(name, pattern) or any(fnmatchcase(one, pattern) for one in numbered)


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a whole name or its last part; for an expert's matrix, with its number or without."""
    return any(
        fnmatchcase(one, pattern) or fnmatchcase(one.rsplit(".", 1)[-1], pattern)
        for one in (name, of_all_experts(name))
    )


def of_all_experts(name: str) -> str:
    """The name of a linear; for an expert's matrix, without its number."""
    return re.sub(r"\.\d+$", "", name)


def is_attention(name: str) -> bool:
    """Whether a linear belongs to a block's attention, by its name: self_attn.q_proj, attention.dense, attn.c_proj."""
    return any("attn" in part or "attention" in part for part in name.lower().split("."))
