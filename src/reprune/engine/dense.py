"""The dense model's stream: the outputs of each of its blocks on all samples, computed once and kept while in use."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from typing import final

from reprune.engine.shared import Shared
from reprune.model.block import Block
from reprune.model.streams import Stream, StreamStore

Pass = Callable[[Block, Stream, Stream], None]
"""Passes all samples through a block, from a stream of its inputs to one of its outputs."""
Dense = Callable[[int], Block]
"""Returns the dense model's block of a given index."""


@final
class DenseStream:
    """The stream at the frontier, and after each block of the window ahead of it."""

    def __init__(self, embedded: Stream, store: StreamStore, run: Pass, shared: Shared | None) -> None:
        """Begins with the states that enter block 0. `shared` holds the streams of earlier runs and takes new ones."""
        self._after: dict[int, Stream] = {-1: embedded}
        self._at_hand = ChainMap({} if shared is None else shared.dense, self._after)
        self._store = store
        self._run = run
        self._shared = shared

    def after(self, index: int, dense: Dense) -> Stream:
        """A block's outputs. Unless they are kept or shared, they are computed, for which its inputs must be kept."""
        if index not in self._at_hand:
            self._compute(dense(index))
        return self._at_hand[index]

    def before(self, index: int) -> Stream:
        """The inputs of a block of the current window, or of the first block after it."""
        return self._at_hand[index - 1]

    def _compute(self, block: Block) -> None:
        source = self._at_hand[block.index - 1]
        shared = self._shared.new_stream() if self._shared is not None else None
        stream = shared or self._store.new(source.shape)
        self._run(block, source, stream)
        if self._shared is not None and shared is not None:
            self._shared.dense[block.index] = shared
        else:
            self._after[block.index] = stream

    def forget_before(self, index: int) -> None:
        """Free the inputs of all blocks before this one, which the frontier has reached."""
        for passed in [after for after in self._after if after < index - 1]:
            self._store.free(self._after.pop(passed))
        if self._shared is not None:
            self._shared.rest_before(index - 1)
