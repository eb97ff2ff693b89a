"""The hidden states of all samples at the frontier: the student's, through pruned blocks, and the dense model's.

Samples are numbered consecutively: first the calibration samples, then the held-out ones. Every rung keeps the dense
stream, because the paper's normalized error of a block is measured against it. A window's targets are the outputs of
its dense blocks on one of the two streams: the student's (a local teacher) or the dense one (a global teacher).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reprune.engine.dense import Dense, DenseStream
from reprune.engine.error_pair import ErrorPair
from reprune.engine.kept import Kept
from reprune.engine.probe import Probe
from reprune.engine.shared import Shared
from reprune.math.ranks import Ranks
from reprune.math.slices import slices
from reprune.math.solver import Errors
from reprune.math.standardization import FeatureStatistics, FeatureSums
from reprune.model.block import Block, Call, many_passes
from reprune.model.decoder import Decoder
from reprune.model.routing import Routes
from reprune.model.streams import Stream, StreamStore, pass_on
from reprune.planning.schedule import Window

Teacher = Literal["local", "global"]


@final
class Frontier:
    """Both streams, and the passes over them."""

    def __init__(
        self,
        decoder: Decoder,
        calibration: Tensor,
        heldout: Tensor,
        batch_size: int,
        store: StreamStore,
        shared: Shared | None,
        statistics_samples: int | None,
        training_sizes: Collection[int],
        ranks: Ranks,
        keep_before: int | None,
    ) -> None:
        """Embed this rank's samples.

        Args:
            calibration, heldout: the token ids of all samples (samples, tokens), int64.
            batch_size: how many samples pass through a block at a time.
            shared: holds what earlier runs have computed of the dense model, and takes what this run computes.
            statistics_samples: how many calibration samples, from the first, give the pruner's statistics; None: all.
            training_sizes: the other batch sizes in which samples will pass through blocks.
            keep_before: the block before which copies of both streams are kept, if any.
        """
        self._decoder = decoder
        self._device = decoder.device
        self._store = store
        self.ranks = ranks
        self.samples = len(calibration)  # of all ranks
        ids = torch.cat([calibration[ranks.number :: ranks.count], heldout[ranks.number :: ranks.count]])
        self.ids = ids  # (samples, tokens), int64: this rank's, as it numbers them
        self.calibration = ranks.part(self.samples)
        self.calibration_batches = slices(0, self.calibration, batch_size)
        self.heldout_batches = slices(self.calibration, len(ids), batch_size)
        self.batches = self.calibration_batches + self.heldout_batches
        self.statistics_of_all = statistics_samples is None or statistics_samples == self.samples
        self.statistics_samples = ranks.part(self.samples if statistics_samples is None else statistics_samples)
        self._statistics_batches = slices(0, self.statistics_samples, batch_size)
        # Whether, on every rank, these batches are also the first of the batches of all samples.
        aside = self._statistics_batches == self.batches[: len(self._statistics_batches)]
        self.statistics_aside = not sum(ranks.add([0.0 if aside else 1.0]))
        # Embedding records what blocks are passed for each batch size, so a batch of each size has to be embedded.
        seen = {batch.stop - batch.start for batch in self.batches}
        own = {*training_sizes} if ranks.alone else {*range(1, max(training_sizes, default=0) + 1)}
        others = (own | {batch.stop - batch.start for batch in self._statistics_batches[-1:]}) - seen
        others = {size for size in others if size <= len(ids)}
        self._probe = Probe(decoder.vocabulary, ids.shape[1])
        probe = self._probe_sample = slice(len(ids), len(ids) + 1)
        batches = [*self.batches, probe, *(slice(0, size) for size in sorted(others))]
        every = torch.cat([ids, self._probe.ids])
        for number, (batch, states) in enumerate(decoder.embed(every, batches, store.tensor)):
            if batch == probe:
                self._probe.states = states
            if number >= len(self.batches):
                continue
            if batch.start == 0:
                self._shape = len(ids), *states.shape[1:]
                self.student, embedded = store.new(self._shape), store.new(self._shape)
            self.student.write(batch, states)
            embedded.write(batch, states)
        if shared is not None:
            shared.make_room(self._shape, len(decoder), decoder.checkpoint.bytes)
        self._dense = DenseStream(
            embedded, store, lambda block, entering, after: self._pass([block], entering, after, self.batches), shared
        )
        decoder.release()
        self._ahead: tuple[list[Block], Stream] | None = None  # blocks, and their outputs on the student's stream
        self.kept: Kept | None = None
        if keep_before is not None:
            self.kept = Kept(keep_before, store, self._shape)
            for batch in self.batches:
                self._keep(0, batch, embedded.read(batch), embedded.read(batch))
            self._keep_probe(0)

    def _keep(self, before: int, batch: slice, student: Tensor, dense: Tensor) -> None:
        """Copy a batch of what enters a block in both models, if this block's inputs are to be kept."""
        if self.kept is not None and self.kept.before == before:
            self.kept.student.write(batch, student)
            self.kept.dense.write(batch, dense)

    def _keep_probe(self, before: int) -> None:
        if self.kept is not None and self.kept.before == before:
            self.kept.probe = self._probe.states

    def run(
        self,
        blocks: Sequence[Block],
        states: Tensor,
        samples: slice | Tensor,
        checkpointing: bool = False,
        routing: Callable[[int], AbstractContextManager[Any] | None] = lambda _: None,
    ) -> Tensor:
        """Pass the states (batch, tokens, hidden) of some samples through blocks, on the blocks' device.

        With checkpointing, activations within a block are not kept for the backward pass but recomputed. `routing` maps
        a block's index to a context that decides which experts its tokens are sent to, or to None.
        """
        states = states.to(self._device)
        for block in blocks:
            call = self._decoder.call(block.index, samples)

            def run(states: Tensor, block: Block = block, call: Call = call) -> Tensor:
                return block.run(states, call, routing(block.index))

            states = checkpoint(run, states, use_reentrant=False) if checkpointing else run(states)
        return states

    def measured(self, states: Tensor) -> Tensor:
        """States (batch, tokens, hidden) as far as errors are measured of them (see `model.forms`)."""
        return self._decoder.skeleton.forms[0].measured(states)

    def mixed(self, states: Tensor, dense: Tensor, share: float) -> Tensor:
        """States with the dense model's share in them."""
        return self._decoder.skeleton.forms[0].mixed(states, dense, share)

    def runs(self, index: int) -> bool:
        """Whether text passes through a block."""
        return index in self._decoder.skeleton.running

    def entering(self, block: Block, samples: slice | Tensor) -> Tensor:
        """The dense model's inputs to a block of the current window, for some samples; only with a global teacher."""
        return self._dense.before(block.index).read(samples, block.device)

    @property
    def dense_end(self) -> Stream:
        """The outputs of the dense model's last block, once the frontier is there."""
        return self._dense.before(len(self._decoder))

    @torch.no_grad()
    def routes(self, dense: Block) -> Routes:
        """Which experts a dense block sends the tokens of the calibration samples to, in the dense model."""
        found, entering = Routes(), self._dense.before(dense.index)
        with many_passes([dense]):
            for batch in self.calibration_batches:
                states = entering.read(batch, dense.device)
                recording = found.recording(len(states), states.shape[1])
                dense.run(states, self._decoder.call(dense.index, batch), recording)
        return found

    def inputs(self, entering: Stream, block: Block) -> Iterator[tuple[Tensor, Call]]:
        """Batches of what reaches a block in the sparse model, of the samples that statistics are gathered from."""
        for batch in self._statistics_batches:
            yield entering.read(batch, block.device), self._decoder.call(block.index, batch)

    def few(self, entering: Stream, block: Block) -> tuple[Tensor, Call]:
        """What reaches a block in the sparse model: of one sample, or of a batch if the block routes tokens."""
        samples = self._statistics_batches[0] if block.routed else slice(0, 1)
        return entering.read(samples, block.device), self._decoder.call(block.index, samples)

    def pairs(self, entering: Stream, block: Block, teacher: Teacher) -> Iterator[tuple[slice, Tensor, Tensor, Call]]:
        """Batches of all samples: what reaches the sparse block, and what its dense twin computes the targets from."""
        dense = self._dense.before(block.index) if teacher == "global" else entering
        for batch in self.batches:
            states, of_dense = entering.read(batch, block.device), dense.read(batch, block.device)
            yield batch, states, of_dense, self._decoder.call(block.index, batch)

    @contextmanager
    def targets(
        self,
        window: Window,
        dense: Dense,
        teacher: Teacher,
        gathering: AbstractContextManager[None] | None,
    ) -> Iterator[Stream]:
        """What a window's last block should put out: the outputs of the dense blocks on the teacher's states.

        Args:
            window: the window.
            teacher: which model's states the targets are computed from.
            dense: called for each dense block whose outputs are not available; the blocks are not kept.
            gathering: entered while the samples that statistics are gathered from pass through the dense blocks; only
                with a local teacher, whose states are the student's.
        """
        for index in window.blocks if teacher == "global" else window.retired:
            self._dense.after(index, dense)
        if teacher == "global":
            yield self._dense.before(window.blocks.stop)
        else:
            with self.through([dense(index) for index in window.blocks], gathering) as end:
                yield end
        self._dense.forget_before(window.retired.stop)

    def features_of(self, targets: Stream) -> FeatureStatistics:
        """How large each feature of a window's targets is, and how much it varies, over all calibration tokens."""
        sums = FeatureSums()
        for batch in self.calibration_batches:
            sums.update(self.measured(targets.read(batch, self._device)))
        return sums.statistics(self.measured(torch.empty(self._shape[-1])).numel(), self._device, self.ranks)

    @contextmanager
    def through(
        self, blocks: Sequence[Block], gathering: AbstractContextManager[None] | None = None
    ) -> Iterator[Stream]:
        """The outputs of these blocks on the student's stream (without blocks, that stream itself).

        The blocks are not kept. If they are those that the last `advance` left open, their outputs were
        kept and are returned, once; the blocks must not have changed since.
        """
        if not blocks:
            yield self.student
            return
        ahead = self._take_ahead(blocks)
        stream = ahead or self._store.new(self._shape)
        try:
            if ahead is None:
                gathered = len(self._statistics_batches)
                with gathering or nullcontext():
                    self._pass(blocks, self.student, stream, self.batches[:gathered])
                self._pass(blocks, self.student, stream, self.batches[gathered:])
            del blocks, gathering
            yield stream
        finally:
            self._store.free(stream)

    def _take_ahead(self, blocks: Sequence[Block]) -> Stream | None:
        """The outputs of these blocks from the end of the last window, if they were kept; the caller then owns them."""
        if self._ahead is None or self._ahead[0] != [*blocks]:
            return None
        (_, stream), self._ahead = self._ahead, None
        return stream

    @torch.no_grad()
    def _pass(self, blocks: Sequence[Block], entering: Stream, into: Stream, batches: Sequence[slice]) -> None:
        """Write the outputs of blocks to `into`, which may be the stream that enters them itself."""
        with many_passes(blocks):
            pass_on(batches, partial(entering.read, device=self._device), partial(self.run, blocks), into.write)

    @torch.no_grad()
    def advance(
        self, window: Window, blocks: Sequence[Block], targets: Stream, scale: Tensor | None
    ) -> tuple[Errors, dict[int, Errors]]:
        """Advance the student's stream through the blocks that the window retires.

        The outputs of those that it leaves open are kept for the next window (see `through`).

        Returns:
            The window's errors against its targets, also standardized if a `scale` (hidden,) of features is given,
            and each retired block's errors against the dense model.
        """
        at_end = ErrorPair(self.calibration, scale)
        of_block = {index: ErrorPair(self.calibration) for index in window.retired}
        if self._ahead is not None:
            self._store.free(self._ahead[1])
        still_open = [block for block in blocks if block.index not in window.retired]
        self._ahead = (still_open, self._store.new(self._shape)) if still_open else None

        def read(batch: slice) -> tuple[Tensor, Tensor]:
            return targets.read(batch, self._device), self.student.read(batch, self._device)

        def run(given: tuple[Tensor, Tensor], batch: slice) -> tuple[Tensor, Tensor]:
            wanted, states = given
            advanced = states
            for block in blocks:
                states = self.run([block], states, batch)
                if block.index in of_block:
                    after = self._dense.before(block.index + 1)
                    dense = wanted if after is targets else after.read(batch, self._device)
                    form = self._decoder.skeleton.forms[block.index]
                    of_block[block.index].update(batch, form.put_out(states), form.put_out(dense))
                    self._keep(block.index + 1, batch, states, dense)
                    advanced = states
            at_end.update(batch, self.measured(states), self.measured(wanted))
            return advanced, states  # after the last retired block, and after all

        def write(batch: slice, made: tuple[Tensor, Tensor]) -> None:
            self.student.write(batch, made[0])
            if self._ahead is not None:
                self._ahead[1].write(batch, made[1])

        with many_passes(blocks):
            pass_on(self.batches, read, run, write)
        for block in (block for block in blocks if block.index in window.retired):
            self._pass_probe(block)
        return at_end.errors(self.ranks), {index: pair.errors(self.ranks) for index, pair in of_block.items()}

    @torch.no_grad()
    def replay(self, dense: Block, pruned: Block) -> None:
        """Advance both streams through a block that was retired before the run was interrupted."""
        after = self._dense.after(dense.index, lambda _: dense)
        self._dense.forget_before(dense.index + 1)
        self._pass([pruned], self.student, self.student, self.batches)
        self._pass_probe(pruned)
        for batch in self.batches:
            self._keep(dense.index + 1, batch, self.student.read(batch), after.read(batch))

    def _pass_probe(self, block: Block) -> None:
        self._probe.states = self.run([block], self._probe.states, self._probe_sample)
        self._keep_probe(block.index + 1)

    @torch.no_grad()
    def repeat(self, dense: Iterable[Block], blocks: Sequence[Block]) -> dict[int, Errors]:
        """Pass the kept streams through the last blocks, which were fitted once more; this uses the streams up.

        Returns each block's errors against the dense model, whose blocks `dense` yields one at a time.
        """
        assert self.kept is not None
        kept, self.kept = self.kept, None
        self._probe.states = kept.probe
        found = {}
        for twin, block in zip(dense, blocks, strict=True):
            pair, form = ErrorPair(self.calibration), self._decoder.skeleton.forms[block.index]
            for one, stream in ((block, kept.student), (twin, kept.dense)):
                self._pass([one], stream, stream, self.batches)
            for batch in self.batches:
                student, teacher = (stream.read(batch, self._device) for stream in (kept.student, kept.dense))
                pair.update(batch, form.put_out(student), form.put_out(teacher))
            self._pass_probe(block)
            found[block.index] = pair.errors(self.ranks)
        kept.free(self._store)
        return found

    def dense_walk(self, dense: Dense, see: Callable[[Block, Stream, Stream], None]) -> None:
        """Call `see` with each dense block, its inputs and its outputs; the streams at the frontier stay there.

        A block is released before the next one is loaded.
        """
        entering, after = self._store.new(self._shape), self._store.new(self._shape)
        for batch in self.batches:
            after.write(batch, self._dense.before(0).read(batch))
        try:
            for index in range(len(self._decoder)):
                block = dense(index)
                entering, after = after, entering
                self._pass([block], entering, after, self.batches)
                see(block, entering, after)
                del block
        finally:
            self._store.free(entering)
            self._store.free(after)

    def probe_record(self) -> dict[str, Any]:
        """The record of the probe (see `engine.probe`) after the sparse model's last block."""
        return self._probe.record(self._decoder.skeleton.forms[-1])
