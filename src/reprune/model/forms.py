"""How a model's hidden states are laid out in a stream: samples first, then tokens, then all the values of a token.

Most models hand (samples, tokens, hidden) from block to block. Some have the samples at a later axis, after several
parallel states. Some blocks hand on more than the states, such as shared keys and values or what a router computed.
These values are carried along as further columns of the states, so many for each token, zero until a block writes them.

Whole numbers, such as the tokens that an indexer has chosen for each token, are carried in the last columns. Float32
holds them exactly up to `EXACT`. How many a token has may depend on the number of tokens, so the stream's width tells
it. They choose rather than measure: no error is measured of them, and two streams of them are never mixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from reprune.errors import UnsupportedModelError

Place = int | tuple[str, Any, int | None]
"""Where a block puts an output besides its states: at an index of the tuple that it returns, or in a mapping that it is
passed, as (name of the argument, key, index if the entry is a tuple)."""

EXACT = 2**24
"""The largest whole number up to which float32 holds each."""


@final
class Beside:
    """A placeholder in a call for what the previous block returns besides the states, at an index of its tuple."""

    def __init__(self, place: int) -> None:
        self.place = place


@final
@dataclass(frozen=True)
class Slot:
    """Values that some blocks hand to later ones besides the states, a fixed number for each token.

    Of whole numbers the last size may depend on the number of tokens.
    """

    place: Place
    shape: tuple[int, ...]  # of one token's values; of whole numbers, in a trial with a few tokens
    axis: int  # of the tokens; samples are axis 0
    dtype: torch.dtype = torch.float32

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers, or true or false."""
        return not self.dtype.is_floating_point

    @property
    def width(self) -> int:
        return math.prod(self.shape)

    def columns(self, value: Tensor) -> Tensor:
        """A block's output as columns, (samples, tokens, width), in its own dtype.

        Raises:
            UnsupportedModelError: another size than the last depends on the number of tokens.
        """
        value = value.movedim(self.axis, 1)
        if self.whole and tuple(value.shape[2:-1]) != self.shape[:-1]:
            raise UnsupportedModelError(
                f"a block hands whole numbers of the shape {list(value.shape[2:])} for each token to later blocks, but "
                f"{list(self.shape)} with fewer tokens; only the last size may depend on the number of tokens."
            )
        return value.reshape(*value.shape[:2], -1 if self.whole else self.width)

    def value(self, columns: Tensor) -> Tensor:
        """The reverse: columns in the layout, and whole numbers in the dtype, that blocks read."""
        if not self.whole:
            return columns.reshape(*columns.shape[:2], *self.shape).movedim(1, self.axis)
        shape = (*self.shape[:-1], -1) if self.shape else ()
        return columns.reshape(*columns.shape[:2], *shape).movedim(1, self.axis).to(self.dtype)


@final
@dataclass(frozen=True)
class Form:
    """How one block is given a stream's states, and how its outputs become a stream's states again."""

    samples: int = 0  # the axis of samples in the model's states
    tokens: int = 1  # the axis of tokens
    rest: tuple[int, ...] = ()  # the sizes of the other axes; needed if there are slots
    slots: tuple[Slot, ...] = ()  # of all blocks; those of whole numbers come last
    reads: frozenset[int] = frozenset()  # indices of the slots that earlier blocks wrote for this one
    writes: frozenset[int] = frozenset()  # indices of the slots that it writes
    runs: bool = True  # False if the model skips the block

    @property
    def _first(self) -> bool:
        """Whether samples and tokens come first in the model's states too."""
        return (self.samples, self.tokens) == (0, 1)

    @property
    def whole(self) -> frozenset[int]:
        """The indices of the slots of whole numbers."""
        return frozenset(number for number, slot in enumerate(self.slots) if slot.whole)

    def of(self, states: Tensor, whole_width: int = 0) -> Tensor:
        """A model's states as a stream's, (samples, tokens, ...), with all slots zero.

        `whole_width` is the number of columns of each slot of whole numbers; the others' is known.
        """
        main = self._main(states)
        if not self.slots:
            return main
        width = sum(whole_width if slot.whole else slot.width for slot in self.slots)
        return torch.cat([main, main.new_zeros(*main.shape[:2], width)], dim=-1)

    def states(self, stream: Tensor) -> Tensor:
        """A stream's states without its slots, (samples, tokens, ...)."""
        if not self.slots:
            return stream
        return stream[..., : math.prod(self.rest)].reshape(*stream.shape[:-1], *self.rest)

    def measured(self, stream: Tensor) -> Tensor:
        """A stream's states, and slots, as far as they are measured: all but whole numbers."""
        return stream[..., : self._measured_width] if self.whole else stream

    def mixed(self, stream: Tensor, other: Tensor, share: float) -> Tensor:
        """A stream's states with a share of another's; the whole numbers stay its own."""
        mixed = self.measured(stream).lerp(self.measured(other), share)
        return torch.cat([mixed, stream[..., mixed.shape[-1] :]], dim=-1) if self.whole else mixed

    def entering(self, stream: Tensor) -> Tensor:
        """A stream's states without its slots, in the model's layout."""
        states = self.states(stream)
        return states if self._first else states.movedim((0, 1), (self.samples, self.tokens))

    def hand(self, args: Any, kwargs: Any, stream: Tensor) -> tuple[Any, Any]:
        """The arguments with the slots that earlier blocks wrote for this one in their places.

        Entries are put into the mappings themselves, so these must be of this pass alone.
        """
        if not self.slots:
            return args, kwargs
        at_hand = {
            slot.place: slot.value(columns) for number, slot, columns in self._parts(stream) if number in self.reads
        }

        def put(value: Any) -> Any:
            return at_hand.get(value.place) if isinstance(value, Beside) else value

        args, kwargs = tuple(map(put, args)), {key: put(value) for key, value in kwargs.items()}
        for place, value in at_hand.items():
            if not isinstance(place, int):
                name, key, number = place
                kwargs[name][key] = value if number is None else (*kwargs[name].get(key, ()), value)
        return args, kwargs

    def leaving(self, outputs: Any, kwargs: Any, stream: Tensor) -> Tensor:
        """A block's outputs as a stream's states; slots that it did not write stay as they are in `stream`."""
        # A block returns the states, or a tuple that begins with them.
        main = self._main(outputs[0] if isinstance(outputs, tuple | list) else outputs).float()
        if not self.slots:
            return main
        parts = [main]
        for number, slot, columns in self._parts(stream):
            value = found(slot.place, outputs, kwargs) if number in self.writes else None
            parts.append(columns if value is None else slot.columns(value).float())
        return torch.cat(parts, dim=-1)

    def put_out(self, stream: Tensor) -> Tensor:
        """What is measured of what the block itself puts out: its states and the slots that it writes."""
        if not self.slots:
            return stream
        written = [columns for number, _, columns in self._parts(stream) if number in self.writes - self.whole]
        return torch.cat([stream[..., : math.prod(self.rest)], *written], dim=-1)

    def beside(self, stream: Tensor) -> dict[int, Tensor]:
        """The floats of a stream that the block returned besides the states, by their index in its tuple."""
        return {
            slot.place: slot.value(columns)
            for number, slot, columns in self._parts(stream)
            if number in self.writes - self.whole and isinstance(slot.place, int)
        }

    @property
    def _measured_width(self) -> int:
        """The columns of a stream with slots that come before those of whole numbers."""
        return math.prod(self.rest) + sum(slot.width for slot in self.slots if not slot.whole)

    def _main(self, states: Tensor) -> Tensor:
        main = states if self._first else states.movedim((self.samples, self.tokens), (0, 1))
        return main.flatten(2) if self.slots else main

    def _parts(self, stream: Tensor) -> Iterator[tuple[int, Slot, Tensor]]:
        first, whole = math.prod(self.rest), self.whole
        each = (stream.shape[-1] - self._measured_width) // max(len(whole), 1)
        for number, slot in enumerate(self.slots):
            width = each if number in whole else slot.width
            yield number, slot, stream[..., first : first + width]
            first += width


PLAIN = Form()
"""(samples, tokens, hidden), and no slots."""


def found(place: Place, outputs: Any, kwargs: Any) -> Tensor | None:
    """What a block that has run put at a place; None if nothing."""
    if isinstance(place, int):
        value = outputs[place]
    else:
        name, key, number = place
        value = kwargs[name].get(key)
        value = value if number is None or value is None else value[number]
    assert value is None or isinstance(value, Tensor)
    return value


def is_shared(value: object) -> bool:
    """Whether an argument is a mapping that blocks may write to for later ones."""
    return isinstance(value, MutableMapping) and not value


def axes(shapes: tuple[torch.Size, torch.Size], ids: tuple[torch.Size, torch.Size]) -> tuple[int, int] | None:
    """The axes of samples and tokens in a model's states.

    Args:
        shapes: of the states for two batches that differ in both.
        ids: the shapes of these batches' token ids, (samples, tokens).

    Returns:
        The axis of samples and that of tokens, which may be longer than the ids; None if they cannot be told.
    """
    one, other = shapes
    if len(one) != len(other):
        return None
    differ = [axis for axis in range(len(one)) if one[axis] != other[axis]]
    samples = [axis for axis in differ if (one[axis], other[axis]) == (ids[0][0], ids[1][0])]
    if len(differ) != 2 or len(samples) != 1:
        return None
    differ.remove(samples[0])
    return samples[0], differ[0]
