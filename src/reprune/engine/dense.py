"""The dense model's stream: what each of its blocks puts out on all samples, computed once and kept while in use."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from reprune.engine.shared import Shared
from reprune.model.block import Block, many_passes
from reprune.model.streams import Stream, StreamStore

Run = Callable[[Block, Tensor, slice], Tensor]
Dense = Callable[[int], Block]
"""Gives a block, by its number, as the dense model has it."""


@final
class DenseStream:
    """The stream at the frontier, and as many blocks ahead as a window looks."""

    def __init__(
        self, embedded: Stream, store: StreamStore, batches: Sequence[slice], run: Run, shared: Shared | None
    ) -> None:
        """It begins with the states that enter block 0; `shared` has streams of runs before, and takes this one's."""
        self._after: dict[int, Stream] = {-1: embedded}
        self._at_hand = ChainMap({} if shared is None else shared.dense, self._after)
        self._store = store
        self._batches = batches
        self._run = run
        self._shared = shared

    @torch.no_grad()
    def after(self, index: int, dense: Dense) -> Stream:
        """What a block puts out; where that is not at hand, nor shared, what enters it must be."""
        if index not in self._at_hand:
            self._compute(dense(index))
        return self._at_hand[index]

    def before(self, index: int) -> Stream:
        """What enters a block of the window in hand, or the first one after it."""
        return self._at_hand[index - 1]

    def _compute(self, block: Block) -> None:
        source = self._at_hand[block.index - 1]
        shared = self._shared.new_stream() if self._shared is not None else None
        stream = shared or self._store.new(source.shape)
        with many_passes([block]):
            for batch in self._batches:
                stream.write(batch, self._run(block, source.read(batch), batch))
        if self._shared is not None and shared is not None:
            self._shared.dense[block.index] = shared
        else:
            self._after[block.index] = stream

    def forget_before(self, index: int) -> None:
        """Free what entered the blocks before that of this number: the frontier has reached it."""
        for passed in [after for after in self._after if after < index - 1]:
            self._store.free(self._after.pop(passed))
        if self._shared is not None:
            self._shared.rest_before(index - 1)
