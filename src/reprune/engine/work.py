"""What a run is to do, in numbers. Knows nothing of how long that takes, or of what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reprune.model.costs import BlockCosts
from reprune.planning.schedule import Window


@dataclass(frozen=True)
class Group:
    """A linear group: rows of all its matrices together, and columns."""

    rows: int
    columns: int
    share: float = 1.0  # of the tokens, how many reach it
    expert: bool = False
    matrices: int = 1

    @staticmethod
    def of(shapes: Iterable[tuple[int, int]], share: float | None = None) -> Group:
        """The group of matrices of these shapes, which have their columns in common.

        `share` is that of the tokens which reach it, of an expert.
        """
        each = list(shapes)
        rows = sum(rows for rows, _ in each)
        reached, expert = (1.0, False) if share is None else (share, True)
        return Group(rows, each[0][1], reached, expert, len(each))


@dataclass(frozen=True)
class Work:
    """What a run is to do, in numbers."""

    blocks: Sequence[BlockCosts]
    groups: Sequence[Sequence[Group]]  # of each block
    schedule: Sequence[Window]
    calibration: int
    heldout: int
    tokens: int  # a sample
    block_bytes: Sequence[int]  # of each block's tensors on disk
    outside_bytes: Sequence[int]  # of each tensor outside the blocks
    head: tuple[int, int] = (0, 0)  # words and hidden size of what makes the logits

    def parameters(self, blocks: Iterable[int]) -> int:
        """How many some blocks have together."""
        return sum(self.blocks[index].parameters for index in blocks)
