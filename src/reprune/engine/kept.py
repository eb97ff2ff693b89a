"""Copies of both streams at the first block that is fitted once more when all windows are done."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from reprune.model.streams import Shape, StreamStore


@final
class Kept:
    """The copies; with them, the blocks before need not be run again."""

    def __init__(self, before: int, store: StreamStore, shape: Shape) -> None:
        """Make room for streams of this shape as they enter the block `before`."""
        self.before = before
        self.student = store.new(shape)
        self.dense = store.new(shape)
        self.probe: Tensor = torch.empty(0)  # (1, tokens, hidden): the probe's states there

    def free(self, store: StreamStore) -> None:
        """Free both streams."""
        for stream in (self.student, self.dense):
            store.free(stream)
