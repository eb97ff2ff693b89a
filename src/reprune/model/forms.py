"""How a model's hidden states lie in a stream's: samples first, then tokens, then all that a token is handed on with.

Most models hand (samples, tokens, hidden) from block to block. Some have samples at another axis, behind several
streams of states; and some blocks hand to later ones more than states, such as keys and values that are shared, or what
a router has seen. That goes along as more columns of the states: so much a token, zero until a block has written it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

Place = int | tuple[str, Any, int | None]
"""Where a block puts something out beside its states: at a place of the tuple that it returns, or as an entry of a
mapping that it is passed by the name of an argument, (name, key, number in a tuple)."""


@final
class Beside:
    """Stands in a call for what a block before returns beside the hidden states, at a place of its tuple."""

    def __init__(self, place: int) -> None:
        self.place = place


@final
@dataclass(frozen=True)
class Slot:
    """Numbers that some blocks hand to later ones beside the states, so many a token."""

    place: Place
    shape: tuple[int, ...]  # of what belongs to a token
    axis: int  # of the tokens, where samples come first

    @property
    def width(self) -> int:
        return math.prod(self.shape)

    def columns(self, value: Tensor) -> Tensor:
        """What a block puts out, as (samples, tokens, width)."""
        value = value.movedim(self.axis, 1)
        return value.reshape(*value.shape[:2], self.width)

    def value(self, columns: Tensor) -> Tensor:
        """The same as blocks read it."""
        return columns.reshape(*columns.shape[:2], *self.shape).movedim(1, self.axis)


@final
@dataclass(frozen=True)
class Form:
    """How one block is given a stream's states, and gives them back."""

    samples: int = 0  # the axis of samples in the model's states
    tokens: int = 1  # and that of tokens
    rest: tuple[int, ...] = ()  # the other axes; needed where there are slots
    slots: tuple[Slot, ...] = ()  # of all blocks
    reads: frozenset[int] = frozenset()  # the numbers of those that earlier blocks have written for this one
    writes: frozenset[int] = frozenset()  # and of those that it writes
    runs: bool = True  # False where the model passes it over

    @property
    def _first(self) -> bool:
        """Whether samples and tokens come first in the model's states too."""
        return (self.samples, self.tokens) == (0, 1)

    def of(self, states: Tensor) -> Tensor:
        """A model's states, with nothing beside them yet, as a stream's: (samples, tokens, ...)."""
        main = self._main(states)
        if not self.slots:
            return main
        return torch.cat([main, main.new_zeros(*main.shape[:2], sum(slot.width for slot in self.slots))], dim=-1)

    def states(self, stream: Tensor) -> Tensor:
        """Of a stream's states those that the model calls so, (samples, tokens, ...)."""
        if not self.slots:
            return stream
        return stream[..., : math.prod(self.rest)].reshape(*stream.shape[:-1], *self.rest)

    def entering(self, stream: Tensor) -> Tensor:
        """The states as the model lays them."""
        states = self.states(stream)
        return states if self._first else states.movedim((0, 1), (self.samples, self.tokens))

    def hand(self, args: Any, kwargs: Any, stream: Tensor) -> tuple[Any, Any]:
        """The arguments with what earlier blocks have written for this one in its places."""
        if not self.slots:
            return args, kwargs
        at_hand = {
            slot.place: slot.value(columns) for number, slot, columns in self._parts(stream) if number in self.reads
        }

        def put(value: Any) -> Any:
            return at_hand.get(value.place) if isinstance(value, Beside) else value

        args, kwargs = tuple(map(put, args)), {key: put(value) for key, value in kwargs.items()}
        for name in {slot.place[0] for slot in self.slots if not isinstance(slot.place, int)} & kwargs.keys():
            kwargs[name] = type(kwargs[name])()
        for place, value in at_hand.items():
            if not isinstance(place, int):
                name, key, number = place
                kwargs[name][key] = value if number is None else (*kwargs[name].get(key, ()), value)
        return args, kwargs

    def leaving(self, outputs: Any, kwargs: Any, stream: Tensor) -> Tensor:
        """What a block has put out, as a stream's states; slots that it has not written stay as they came."""
        # A block returns the states, or a tuple that begins with them.
        main = self._main(outputs[0] if isinstance(outputs, tuple | list) else outputs).float()
        if not self.slots:
            return main
        parts = [main]
        for number, slot, columns in self._parts(stream):
            value = found(slot.place, outputs, kwargs) if number in self.writes else None
            parts.append(columns if value is None else slot.columns(value).float())
        return torch.cat(parts, dim=-1)

    def beside(self, stream: Tensor) -> dict[int, Tensor]:
        """Of a stream's states what the block has returned beside them, by its place."""
        return {
            slot.place: slot.value(columns)
            for number, slot, columns in self._parts(stream)
            if number in self.writes and isinstance(slot.place, int)
        }

    def _main(self, states: Tensor) -> Tensor:
        main = states if self._first else states.movedim((self.samples, self.tokens), (0, 1))
        return main.flatten(2) if self.slots else main

    def _parts(self, stream: Tensor) -> Iterator[tuple[int, Slot, Tensor]]:
        first = math.prod(self.rest)
        for number, slot in enumerate(self.slots):
            yield number, slot, stream[..., first : first + slot.width]
            first += slot.width


PLAIN = Form()
"""Samples, tokens, hidden, and nothing beside."""


def found(place: Place, outputs: Any, kwargs: Any) -> Tensor | None:
    """What a block that was run has put there."""
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
    """Where samples and tokens lie in states.

    Args:
        shapes: of the states for two batches that differ in both.
        ids: of these batches, (samples, tokens).

    Returns:
        The axis of samples and that of tokens, of which there may be more than were given; None if it cannot be told.
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
