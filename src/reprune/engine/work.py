"""The amount of work of a run, in numbers. Knows nothing of the time or the memory that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reprune.model.costs import BlockCosts
from reprune.planning.schedule import Window


@dataclass(frozen=True)
class Group:
    """The size of a linear group."""

    rows: int  # of all its matrices together
    columns: int
    share: float = 1.0  # of all tokens, the part that reaches it
    expert: bool = False
    matrices: int = 1
    stage: str | None = None  # shared by groups whose inputs are seen in one pass; None for a group by itself

    @staticmethod
    def of(shapes: Iterable[tuple[int, int]], share: float | None = None, stage: str | None = None) -> Group:
        """The group of matrices of these shapes (rows, columns), which all have the same number of columns.

        `share` is given for an expert: the part of the tokens that reaches it; `stage` for the matrices of a stack.
        """
        each = list(shapes)
        rows = sum(rows for rows, _ in each)
        reached, expert = (1.0, False) if share is None else (share, True)
        return Group(rows, each[0][1], reached, expert, len(each), stage)


@dataclass(frozen=True)
class Work:
    """The amount of work of a run, in numbers."""

    blocks: Sequence[BlockCosts]
    groups: Sequence[Sequence[Group]]  # of each block
    schedule: Sequence[Window]
    calibration: int  # samples
    heldout: int  # samples
    tokens: int  # per sample
    block_bytes: Sequence[int]  # of each block's tensors on disk
    outside_bytes: Sequence[int]  # of each tensor outside the blocks
    head: tuple[int, int] = (0, 0)  # vocabulary and hidden size of the head
    own: int = 0  # bytes that blocks are passed for a sample and differ between samples

    def errs(self, window: Window, local: bool) -> bool:
        """Whether a window has an error to fit: something was pruned before its end, or with a local teacher in it."""
        # Windows that overlap hand on what they fit; if none does, a local teacher starts from the student at each.
        first = window.blocks.start if local and window.fresh == window.blocks else 0
        return any(self.groups[index] for index in range(first, window.blocks.stop))

    def parameters(self, blocks: Iterable[int]) -> int:
        """The number of parameters of some blocks together."""
        return sum(self.blocks[index].parameters for index in blocks)
