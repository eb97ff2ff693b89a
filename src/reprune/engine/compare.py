"""The error of each block of a sparse model against its dense model, with one block of each in memory at a time.

Two streams of the same text advance side by side, each embedded by its own model and passed through that model's
blocks. Knows nothing of how the sparse model was made, or of texts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from reprune.errors import InputError, NumericalError
from reprune.math.reconstruction_error import Error, ErrorMeter
from reprune.math.slices import slices
from reprune.model.block import Block, many_passes
from reprune.model.decoder import Decoder
from reprune.model.streams import StreamStore, stream_bytes


@final
@dataclass(frozen=True)
class BlockError:
    """How far a sparse block's output is from the dense block's, each on its own model's stream."""

    index: int
    normalized: float  # (1 / (N H T)) * ||dense - sparse||^2, the paper's normalized reconstruction error
    relative: float  # ||dense - sparse||^2 / ||dense||^2
    sparsity: float  # the share of exact zeros among the weights of the sparse block's linears


@final
@dataclass(frozen=True)
class Comparison:
    """A sparse model's errors from its embedding to its last block."""

    embedding: Error  # zero if both models embed alike, as for every result of reprune
    blocks: tuple[BlockError, ...]


def check_alike(sparse: Decoder, dense: Decoder) -> None:
    """Raise `InputError`, naming the difference, unless both models have the same architecture and shapes."""
    for what, of in (
        ("their architecture", lambda decoder: decoder.skeleton.config.model_type),
        ("their number of blocks", len),
        ("their hidden size", lambda decoder: getattr(decoder.skeleton.config, "hidden_size", None)),
        ("their vocabulary size", lambda decoder: decoder.vocabulary),
    ):
        if (one := of(sparse)) != (other := of(dense)):
            raise _different(sparse, dense, what, f"{one} and {other}")
    for index in range(len(dense)):
        shapes = [decoder.shapes(index) for decoder in (sparse, dense)]
        for name in (name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)):
            one, other = (list(found[name]) if name in found else "none" for found in shapes)
            raise _different(sparse, dense, f"the shape of {name} in block {index}", f"{one} and {other}")


def _different(sparse: Decoder, dense: Decoder, what: str, values: str) -> InputError:
    return InputError(
        f"{sparse.name} and {dense.name} differ in {what} ({values}); only a model pruned from the dense one can "
        "be compared with it."
    )


@torch.no_grad()
def compare(
    sparse: Decoder,
    dense: Decoder,
    ids: Tensor,
    batch_size: int,
    memory_bytes: int,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Comparison:
    """Measure every block of two models of the same architecture and shapes (see `check_alike`).

    Args:
        sparse, dense: the models.
        ids: the text's token ids (samples, tokens), int64.
        batch_size: how many samples pass through a block at a time.
        memory_bytes: the memory that both streams, and what else differs between samples, may take together; what does
            not fit goes to files.
        folder: where those files go.
        progress: called with the number of batches that have passed through a block, and their total.

    Raises:
        InputError: a stream fits neither in memory nor on the folder's disk.
        NumericalError: a block's outputs are not finite.
    """
    batches = slices(0, len(ids), batch_size)
    with StreamStore(memory_bytes, folder) as store:
        student, teacher = _Side(sparse, ids, batches, store, folder), _Side(dense, ids, batches, store, folder)
        embedding = ErrorMeter()
        for batch in batches:
            embedding.update(student.states(batch), teacher.states(batch))

        def measure(index: int) -> BlockError:
            one, other = sparse.load(index), dense.load(index)
            meter, form = ErrorMeter(), dense.skeleton.forms[index]
            with many_passes([one, other]):
                for number, batch in enumerate(batches, 1):
                    outputs, targets = student.advance(one, batch), teacher.advance(other, batch)
                    meter.update(form.put_out(outputs), form.put_out(targets))
                    progress(index * len(batches) + number, len(dense) * len(batches))
            error = meter.error()
            if not error.finite:
                raise NumericalError(
                    f"block {index}: the outputs of {sparse.name} or of its dense model are not finite"
                )
            return BlockError(index, error.normalized, error.relative, sparsity(one))

        return Comparison(embedding.error(), tuple(measure(index) for index in range(len(dense))))


@final
class _Side:
    """One model's stream."""

    def __init__(
        self, decoder: Decoder, ids: Tensor, batches: Sequence[slice], store: StreamStore, folder: Path
    ) -> None:
        self._decoder = decoder
        for batch, states in decoder.embed(ids, batches, store.tensor):
            if batch.start == 0:
                shape = len(ids), *states.shape[1:]
                if not store.has_memory_for(shape):
                    _check_room(folder, stream_bytes(shape))
                self._stream = store.new(shape)
            self._stream.write(batch, states)
        decoder.release()

    def states(self, batch: slice) -> Tensor:
        return self._stream.read(batch)

    def advance(self, block: Block, batch: slice) -> Tensor:
        """Pass a batch of the stream through a block; returns its states (batch, tokens, hidden) after it."""
        states = self._stream.read(batch, self._decoder.device)
        states = block.run(states, self._decoder.call(block.index, batch))
        self._stream.write(batch, states)
        return states


def _check_room(folder: Path, needed: int) -> None:
    """Raise `InputError` unless `needed` bytes fit: writing to a mapped file on a full disk would end the process."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder.parent}: the hidden states of this text take {needed / 1e9:.1f} GB of disk, but "
            f"{free / 1e9:.1f} GB are free; take fewer --windows, or set TMPDIR to a folder with more room."
        )


def sparsity(block: Block) -> float:
    """The share of exact zeros among the weights of a block's linears (0 if it has no linears)."""
    weights = [linear.matrix() for linear in block.linears]
    zeros = sum(int((matrix == 0).sum()) for matrix in weights)
    return zeros / max(sum(matrix.numel() for matrix in weights), 1)
