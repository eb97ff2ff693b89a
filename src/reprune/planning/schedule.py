"""Which blocks are reconstructed together, and in which order. Knows numbers only.

One formula yields every rung of the paper's ladder: windows of `size` blocks, each beginning `stride` blocks after
the one before. Size 1, stride 1 goes block by block; size 2, stride 1 gives the overlapping windows of cross-block
reconstruction, [0], [0, 1], [1, 2], ..., [n-1]; size k, stride k takes k blocks at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Consecutive blocks that are reconstructed together."""

    index: int
    blocks: range
    fresh: range  # those that are still dense, and are pruned first
    retired: range  # those that no later window contains: they are final after this one
    distills: bool = False  # whether the blocks are already final and are fitted to the dense model's predictions

    def __str__(self) -> str:
        return f"window {self.index} (blocks {list(self.blocks)})"


def windows(blocks: int, size: int, stride: int) -> list[Window]:
    """All windows over this number of blocks, in order.

    Each block is fresh in exactly one window and retired in exactly one, in the order of the blocks.
    Raises `ValueError` unless 1 <= stride <= size (a larger stride would leave blocks out).
    """
    if not 1 <= stride <= size:
        raise ValueError(f"a schedule needs 1 <= stride <= size, got size {size} and stride {stride}")

    def clipped(start: int, end: int) -> range:
        return range(max(start, 0), max(min(end, blocks), start, 0))

    return [
        Window(
            index,
            blocks=clipped(start, start + size),
            fresh=clipped(start + size - stride, start + size),
            retired=clipped(start, start + stride),
        )
        for index, start in enumerate(range(stride - size, blocks, stride))
    ]


def once_more(index: int, blocks: int, count: int) -> Window:
    """The step that fits the last `count` blocks once more when all windows are done.

    No block is fresh or retired in it: the windows before have pruned and retired them. `index` is the step's number.
    """
    return Window(index, range(blocks - count, blocks), range(blocks, blocks), range(blocks, blocks), distills=True)


def ranges(numbers: Sequence[int]) -> str:
    """0-3, 5 for [0, 1, 2, 3, 5]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
