"""Finds out what blocks hand to later ones beside the states, by running each on a few tokens without its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.beside import passed_beside, without_weights
from reprune.model.block import Call
from reprune.model.forms import Form, Place, Slot, is_shared


def hands_on(calls: Sequence[Call]) -> bool:
    """Whether blocks are passed anything that earlier ones have made, or may have."""
    return any(passed_beside(call) or any(map(is_shared, call.args)) for call in calls) or bool(_shared(calls))


@torch.no_grad()
def find_forms(model: str, blocks: nn.ModuleList, calls: Sequence[Call], states: Tensor, plain: Form) -> list[Form]:
    """The form of each block.

    Args:
        model: its name, for messages.
        blocks: on the meta device; left as they are.
        calls: what each is passed for one sample of a few tokens; what blocks before return beside is marked.
        states: that enter the first, as the model lays them.
        plain: how.

    Raises:
        UnsupportedModelError: something is handed on that is not so many numbers a token.
    """
    main = plain.of(states)
    plain = replace(plain, rest=tuple(main.shape[2:]))
    shared, tokens = _shared(calls), main.shape[1]
    slots: list[Slot] = []
    reads: list[frozenset[int]] = []
    writes: list[frozenset[int]] = []
    for index, call in enumerate(calls):
        if any(map(is_shared, call.args)):
            raise _refusal(model, index, "in an argument without a name")
    running = [index for index, call in enumerate(calls) if call.form.runs]
    last: frozenset[int] = frozenset()  # what the block before has written
    entries: set[int] = set()  # of mappings, written by any block before
    for index, call in enumerate(calls):
        reads.append(frozenset(entries | {number for number in last if isinstance(slots[number].place, int)}))
        written: set[int] = set()
        if index in running:
            form = replace(plain, slots=tuple(slots), reads=reads[index])
            try:
                args, kwargs = replace(call, form=form).bind(form.of(torch.zeros_like(states, dtype=torch.float32)))
                for name in shared & kwargs.keys():
                    if kwargs[name] is call.kwargs[name]:  # no block writes to what all of them are passed
                        kwargs[name] = type(kwargs[name])()
                handed = {name: dict(kwargs[name]) for name in shared if name in kwargs}
                outputs = without_weights(blocks[index])(*args, **kwargs)
            except Exception as error:  # whatever a module raises
                said = " ".join(str(error).split())
                raise _refusal(
                    model, index, f"it does not run by itself ({type(error).__name__}: {said:.200})"
                ) from error
            following = running[running.index(index) + 1 :][:1]
            wanted = {beside.place for later in following for beside in passed_beside(calls[later])}
            for place, value in _put_out(outputs, wanted, kwargs, handed):
                slot = _slot(model, index, place, value, tokens)
                known = next((number for number, one in enumerate(slots) if one.place == place), None)
                if known is None:
                    slots.append(slot)
                elif slots[known] != slot:
                    raise _refusal(model, index, "it is not of one shape")
                written.add(len(slots) - 1 if known is None else known)
            last = frozenset(written)
            entries |= {number for number in written if not isinstance(slots[number].place, int)}
        writes.append(frozenset(written))
    return [
        replace(plain, slots=tuple(slots), reads=reads[index], writes=writes[index], runs=call.form.runs)
        for index, call in enumerate(calls)
    ]


def _shared(calls: Sequence[Call]) -> set[str]:
    """The names of arguments that are one empty mapping for several blocks."""
    seen: dict[str, int] = {}
    for call in calls:
        for name, value in call.kwargs.items():
            if is_shared(value):
                seen[name] = seen.get(name, 0) + 1
    return {name for name, count in seen.items() if count > 1}


def _put_out(
    outputs: Any, wanted: set[int], kwargs: Mapping[str, Any], handed: Mapping[str, Mapping[Any, Any]]
) -> list[tuple[Place, Any]]:
    """All that a block has written for later ones, in an order that is always the same."""
    found: list[tuple[Place, Any]] = [(place, outputs[place]) for place in sorted(wanted) if outputs[place] is not None]
    for name, before in sorted(handed.items()):
        for key, value in kwargs[name].items():
            if before.get(key) is value:
                continue
            if isinstance(value, tuple | list):
                found += [((name, key, number), part) for number, part in enumerate(value)]
            else:
                found.append(((name, key, None), value))
    return found


def _slot(model: str, index: int, place: Place, value: Any, tokens: int) -> Slot:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise _refusal(model, index, f"it is {what}")
    places = [axis for axis, size in enumerate(value.shape) if axis and size == tokens]
    if len(places) != 1 or len(value) != 1:
        raise _refusal(model, index, f"it has the shape {list(value.shape)} for one sample of {tokens} tokens")
    shape = value.shape[1 : places[0]] + value.shape[places[0] + 1 :]
    return Slot(place, tuple(shape), places[0])


def _refusal(model: str, index: int, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{model}: block {index} hands to later blocks more than the hidden states, and {why}; only numbers that "
        "belong to a token can be carried along with its states."
    )
