"""Both streams as they were before a block that is fitted once more when all windows are done."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from reprune.model.streams import Shape, StreamStore


@final
class Kept:
    """Copies, so that what the blocks before have computed need not be computed again."""

    def __init__(self, before: int, store: StreamStore, shape: Shape) -> None:
        """Of streams of this shape as they enter the block `before`."""
        self.before = before
        self.student = store.new(shape)
        self.dense = store.new(shape)
        self.probe: Tensor = torch.empty(0)  # (1, tokens, hidden): what the probe's states are there

    def free(self, store: StreamStore) -> None:
        """Give their memory back."""
        for stream in (self.student, self.dense):
            store.free(stream)
