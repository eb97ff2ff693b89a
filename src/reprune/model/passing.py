"""What a model passes to its blocks besides the hidden states: the same for all samples, or different for each.

Masks and rotary embeddings are the same for all samples. Some models also pass values that differ, such as an embedding
of each token for each block; these are kept for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.nested import Place, leaves, plain_values, with_leaves, with_tensors
from reprune.model.streams import sent

Room = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes a tensor of a shape and dtype, on the CPU, whose values are not yet set."""


def in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Room for a tensor that is sure to fit in memory."""
    return torch.empty(shape, dtype=dtype)


@final
class Passing:
    """The calls of all blocks, for batches of samples."""

    def __init__(self, model: str, samples: int, room: Room = in_memory) -> None:
        """
        Args:
            model: the model's name, for messages.
            samples: how many there are in all.
            room: for what differs between samples.
        """
        self._model = model
        self._room = room
        self._calls: dict[int, list[Call]] = {}  # by batch size; values that differ between samples are other samples'
        self._own: dict[tuple[int, Place], Tensor] = {}  # by block and place: (samples, ...), on the CPU
        self._samples, self._filled = samples, 0

    def take(self, batch: slice, calls: list[Call], others: Callable[[], list[Call]]) -> None:
        """Record what blocks are passed with a batch.

        Args:
            batch: the batch's samples; when samples come for the first time, they come in order.
            calls: one for each block.
            others: returns the calls for as many other samples, to find what differs between samples.

        Raises:
            UnsupportedModelError: something differs between samples that is not a tensor with a row for each sample.
        """
        size = batch.stop - batch.start
        if size not in self._calls:
            self._calls[size] = others()
        new = batch.start == self._filled
        for index, (one, other) in enumerate(zip(self._calls[size], calls, strict=True)):
            found, known = dict(_leaves(other)), dict(_leaves(one))
            if found.keys() != known.keys():
                raise self._refusal(index, next(iter(found.keys() ^ known.keys())))
            for path, value in found.items():
                if (index, path) not in self._own and not _equal(known[path], value):
                    self._begin_own(index, path, known[path], value, size)
                if (index, path) in self._own and new:
                    self._own[index, path][batch] = value
        if new:
            self._filled = batch.stop

    @property
    def has_own(self) -> bool:
        """Whether any argument differs from sample to sample."""
        return bool(self._own)

    def check(self, calls: list[Call], disturbed: list[Call]) -> None:
        """Raise `UnsupportedModelError` if calls depend on what blocks return.

        Args:
            calls: for some samples.
            disturbed: for the same samples, with blocks that hand on other states.
        """
        for index, (one, other) in enumerate(zip(calls, disturbed, strict=True)):
            for (path, value), (_, changed) in zip(_leaves(one), _leaves(other), strict=True):
                if not _equal(value, changed):
                    raise self._refusal(
                        index,
                        path,
                        "depends on the blocks before it",
                        "are connected by more than the hidden states",
                        ": have those blocks write it to a dict that is empty before the first block",
                    )

    def _begin_own(self, index: int, path: Place, known: Any, value: Any, size: int) -> None:
        alike = isinstance(known, Tensor) and isinstance(value, Tensor) and known.shape == value.shape
        if not alike or not value.dim() or len(value) != size or self._filled:
            raise self._refusal(index, path)
        self._own[index, path] = self._room((self._samples, *value.shape[1:]), value.dtype)

    def finish(self, device: torch.device) -> None:
        """Move what all samples share to the device that blocks run on."""
        self._calls = {size: to_device(calls, device) for size, calls in self._calls.items()}

    def call(self, index: int, samples: slice | Tensor) -> Call:
        """What a block is passed with the states of these samples."""
        size = samples.stop - samples.start if isinstance(samples, slice) else len(samples)
        call = self._calls[size][index]
        own = {place: values for (block, place), values in self._own.items() if block == index}
        return _with(call, own, samples) if own else call

    def _refusal(
        self,
        index: int,
        path: Place,
        what: str = "differs from sample to sample",
        who: str = "depend on more than the hidden states",
        way: str = "",
    ) -> UnsupportedModelError:
        name = path[1] if path[0] == "kwargs" else f"argument {path[1]}"
        return UnsupportedModelError(
            f"{self._model}: block {index} is passed {name!r}, which {what}; "
            f"blocks that {who} cannot be pruned one by one{way}."
        )


def own_of_samples(calls: Sequence[Call]) -> Iterator[Tensor]:
    """What differs between the two samples that these calls, one for each block, are for: tensors of two rows."""
    for call in calls:
        for _, value in _leaves(call):
            if isinstance(value, Tensor) and value.dim() and len(value) == 2 and not _equal(*value):
                yield value


def _leaves(call: Call) -> Iterator[tuple[Place, Any]]:
    """All values that a call passes, each with its place: ("args", 1), ("kwargs", "mask", 0)."""
    yield from leaves(call.args, ("args",))
    yield from leaves(call.kwargs, ("kwargs",))


def _with(call: Call, own: Mapping[Place, Tensor], samples: slice | Tensor) -> Call:
    """A call with some samples' values at some places, each on the device of the tensor that it replaces."""

    def put(place: Place, value: Any) -> Any:
        return sent(own[place], samples, value.device) if place in own else value

    return replace(call, args=with_leaves(call.args, ("args",), put), kwargs=with_leaves(call.kwargs, ("kwargs",), put))


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        # An argument that is computed from weights without values may hold NaN, which is no different from itself.
        return one.shape == other.shape and (
            torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
        )
    return type(one) is type(other) and plain_values(one) == plain_values(other)


def to_device(calls: list[Call], device: torch.device) -> list[Call]:
    """The calls with their tensors on a device.

    A tensor that several blocks share stays shared, and one that is expanded, as a mask to all samples of a batch, is
    expanded there too.
    """
    moved: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            once = tuple(slice(None) if stride else slice(1) for stride in tensor.stride())
            moved[id(tensor)] = tensor.detach()[once].to(device).expand(tensor.shape)
        return moved[id(tensor)]

    return [replace(call, args=with_tensors(call.args, move), kwargs=with_tensors(call.kwargs, move)) for call in calls]
