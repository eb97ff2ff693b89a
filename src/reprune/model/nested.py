"""What lies within a value: in a tuple, a list, a mapping, or an object that holds tensors. Knows nothing of models.

An object may lie within another, or within itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

Place = tuple[Any, ...]
"""Where something lies: ("mask", 0), with the names of objects' attributes too."""


def parts(value: Any) -> Mapping[Any, Any] | None:
    """By number, key or name what a value holds; None of one that is taken as a whole."""
    if isinstance(value, tuple | list | dict):
        return _held(value)
    return _held(value) if any(isinstance(part, Tensor) for _, part in _within(value, (), {})) else None


def _held(value: Any) -> Mapping[Any, Any] | None:
    """The same of any object, whether or not a tensor lies within it."""
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if isinstance(value, dict):
        return value
    return None if isinstance(value, Tensor | nn.Module | type | FunctionType | ModuleType) else _attributes(value)


def _within(value: Any, place: Place, seen: dict[int, Any]) -> Iterator[tuple[Place, Any]]:
    """All that lies within a value and holds nothing, or was `seen`, by identity; any object is gone through once."""
    held = None if id(value) in seen else _held(value)
    if not held:
        yield place, value
        return
    seen[id(value)] = value  # holding it keeps its identity
    for key, part in held.items():
        yield from _within(part, (*place, key), seen)


def within(value: Any) -> dict[Place, Any]:
    """What lies within a value, and within objects that hold no tensors too, by place."""
    return dict(_within(value, (), {}))


def plain_values(value: Any) -> dict[Place, int | float | str | None]:
    """The numbers and texts of it."""
    return {place: part for place, part in within(value).items() if isinstance(part, int | float | str | None)}


def _attributes(value: Any) -> dict[str, Any]:
    """What an object has of its own by name, in its dictionary or in slots."""
    state = object.__getstate__(value)
    kinds = state if isinstance(state, tuple) else (state,)
    return {name: part for kind in kinds for name, part in (kind or {}).items()}


def leaves(value: Any, place: Place, around: tuple[Any, ...] = ()) -> Iterator[tuple[Place, Any]]:
    """All that lies within a value at a place and holds nothing, or is what it lies in, each with its own place.

    `around` is what the value itself lies in.
    """
    held = None if any(value is one for one in around) else parts(value)
    if held is None:
        yield place, value
        return
    for key, part in held.items():
        yield from leaves(part, (*place, key), (*around, value))


def with_leaves(value: Any, place: Place, change: Callable[[Place, Any], Any]) -> Any:
    """The same with what `change` makes of its leaves, each with its place; objects that nothing is changed in stay."""
    return _with_leaves(value, place, change, {})


def _with_leaves(
    value: Any, place: Place, change: Callable[[Place, Any], Any], made: dict[int, tuple[Any, Any]]
) -> Any:
    if id(value) in made:
        return made[id(value)][1]
    held = parts(value)
    if held is None:
        return change(place, value)
    if isinstance(value, tuple):
        items = [_with_leaves(part, (*place, key), change, made) for key, part in held.items()]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    copied = copy.copy(value)
    made[id(value)] = value, copied  # before what it holds, which may be itself
    changed = isinstance(value, list | dict)
    for key, part in held.items():
        new = _with_leaves(part, (*place, key), change, made)
        changed |= new is not part
        if isinstance(copied, list | dict):
            copied[key] = new
        elif new is not part:
            object.__setattr__(copied, key, new)  # frozen dataclasses too
    if not changed:
        made[id(value)] = value, value
    return made[id(value)][1]


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with other tensors in place of all that lie within it; objects that hold none stay what they are."""
    return with_leaves(value, (), lambda _, leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)
