"""The hidden states of all samples at the frontier: the student's, through pruned blocks, and the dense model's.

Samples are numbered through: first those that are calibrated on, then those held out. The dense stream is kept by
every rung, as the paper's normalized error of a block compares with it. A window's targets are the outputs of its
dense blocks on one of the two streams: on the student's (a local teacher), or on the dense one (a global teacher).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from reprune.math.reconstruction_error import ErrorMeter
from reprune.math.solver import Errors
from reprune.model.block import Block, Call
from reprune.model.decoder import Decoder
from reprune.model.streams import Stream, StreamStore
from reprune.planning.schedule import Window

Teacher = Literal["local", "global"]


@dataclass(frozen=True)
class Targets:
    """What a window is compared with."""

    end: Stream  # what the window's last block should put out, from the teacher's inputs
    dense: Mapping[int, Stream]  # for each retired block, what it puts out in the dense model


@final
class ErrorPair:
    """Measures calibration and held-out samples apart."""

    def __init__(self, calibration: int) -> None:
        self._calibration = calibration
        self._meters = (ErrorMeter(), ErrorMeter())

    def update(self, batch: slice, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch of samples (all of one kind)."""
        self._meters[batch.start >= self._calibration].update(outputs, targets.to(outputs.device))

    def errors(self) -> Errors:
        """The errors over all batches so far."""
        return Errors(self._meters[0].error(), self._meters[1].error())


@final
class Frontier:
    """Both streams, and the passes over them."""

    def __init__(
        self, decoder: Decoder, ids: Tensor, calibration: int, batch_size: int, memory_bytes: int, folder: Path
    ) -> None:
        """Embed all samples.

        Args:
            decoder: the dense model.
            ids: all samples (samples, tokens), int64, those calibrated on first.
            calibration: how many of them are calibrated on; the others are held out.
            batch_size: how many samples pass through a block at a time.
            memory_bytes: what all streams in memory may take together; the others go to files.
            folder: where those files go.
        """
        self._decoder = decoder
        self.calibration = calibration
        self.calibration_batches = _slices(0, calibration, batch_size)
        self.heldout_batches = _slices(calibration, len(ids), batch_size)
        self.batches = self.calibration_batches + self.heldout_batches
        for batch, states in decoder.embed(ids, self.batches):
            if batch.start == 0:
                self._store = StreamStore((len(ids), *states.shape[1:]), memory_bytes, folder)
                self.student, self.dense = self._store.new(), self._store.new()
            self.student.write(batch, states)
            self.dense.write(batch, states)
        decoder.release()

    def run(self, blocks: Sequence[Block], states: Tensor) -> Tensor:
        """Pass states (batch, tokens, hidden) through blocks, on their device."""
        states = states.to(self._decoder.device)
        for block in blocks:
            states = block.run(states, self._decoder.call(block.index, len(states)))
        return states

    def inputs(self, before: Sequence[Block], block: Block) -> Iterator[tuple[Tensor, Call]]:
        """What reaches a block of the window in the sparse model: all calibration samples, batch by batch.

        Args:
            before: the window's blocks before it.
            block: the block.
        """
        for batch in self.calibration_batches:
            states = self.run(before, self.student.read(batch).to(block.device))
            yield states, self._decoder.call(block.index, len(states))

    @contextmanager
    def targets(self, window: Window, dense: Sequence[Block], teacher: Teacher) -> Iterator[Targets]:
        """The targets of a window; advances the dense stream through the blocks that the window retires."""
        retired = len(window.retired)
        made: list[Stream] = []

        def new() -> Stream:
            made.append(self._store.new())
            return made[-1]

        taps = {after: self.dense if after == retired else new() for after in range(1, retired + 1)}
        if teacher == "local":
            end = new()
            self._pass(dense, self.student, {len(dense): end})
            self._pass(dense[:retired], self.dense, taps)
        else:
            end = taps.get(len(dense)) or new()
            self._pass(dense, self.dense, taps | {len(dense): end})
        try:
            yield Targets(end, {index: taps[after] for after, index in enumerate(window.retired, 1)})
        finally:
            for stream in made:
                self._store.free(stream)

    @contextmanager
    def through(self, blocks: Sequence[Block]) -> Iterator[Stream]:
        """A stream of what comes out of these blocks in the sparse model, the student's stream in."""
        stream = self._store.new()
        try:
            self._pass(blocks, self.student, {len(blocks): stream})
            yield stream
        finally:
            self._store.free(stream)

    @torch.no_grad()
    def _pass(self, blocks: Sequence[Block], source: Stream, taps: Mapping[int, Stream]) -> None:
        """Run `source` through blocks and write what comes out after the n-th block to taps[n] (may be `source`)."""
        if not blocks:
            return
        for batch in self.batches:
            states = source.read(batch)
            for after, block in enumerate(blocks, 1):
                states = self.run([block], states)
                if after in taps:
                    taps[after].write(batch, states)

    @torch.no_grad()
    def advance(self, window: Window, blocks: Sequence[Block], targets: Targets) -> tuple[Errors, dict[int, Errors]]:
        """Advance the student's stream through the blocks that the window retires.

        Returns:
            The window's errors, against its targets, and each retired block's, against the dense model.
        """
        at_end = ErrorPair(self.calibration)
        of_block = {index: ErrorPair(self.calibration) for index in window.retired}
        for batch in self.batches:
            states = self.student.read(batch)
            advanced = states
            for block in blocks:
                states = self.run([block], states)
                if block.index in of_block:
                    of_block[block.index].update(batch, states, targets.dense[block.index].read(batch))
                    advanced = states
            at_end.update(batch, states, targets.end.read(batch))
            self.student.write(batch, advanced)
        return at_end.errors(), {index: pair.errors() for index, pair in of_block.items()}

    def replay(self, dense: Block, pruned: Block) -> None:
        """Advance both streams through a block that an earlier process retired."""
        self._pass([dense], self.dense, {1: self.dense})
        self._pass([pruned], self.student, {1: self.student})


def _slices(start: int, end: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, end)) for first in range(start, end, size)]
