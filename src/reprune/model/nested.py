"""Goes through nested values: tuples, lists, mappings, and objects that hold tensors. Knows nothing of models.

An object may lie within another, or within itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

Place = tuple[Any, ...]
"""The path of a value: indices, keys and attribute names, such as ("mask", 0)."""


def parts(value: Any) -> Mapping[Any, Any] | None:
    """The parts of a value by index, key or attribute name; None for a value that is taken as a whole."""
    if isinstance(value, tuple | list | dict):
        return _held(value)
    return _held(value) if any(isinstance(part, Tensor) for _, part in _within(value, (), {})) else None


def _held(value: Any) -> Mapping[Any, Any] | None:
    """The same for any object, whether or not it holds a tensor."""
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if isinstance(value, dict):
        return value
    return None if isinstance(value, Tensor | nn.Module | type | FunctionType | ModuleType) else _attributes(value)


def _within(value: Any, place: Place, seen: dict[int, Any]) -> Iterator[tuple[Place, Any]]:
    """The values within a value that hold nothing, or were `seen` (by identity): each object is entered once."""
    held = None if id(value) in seen else _held(value)
    if not held:
        yield place, value
        return
    seen[id(value)] = value  # holding it keeps its identity
    for key, part in held.items():
        yield from _within(part, (*place, key), seen)


def within(value: Any) -> dict[Place, Any]:
    """All leaves of a value by place, those of objects without tensors too."""
    return dict(_within(value, (), {}))


def plain_values(value: Any) -> dict[Place, int | float | str | None]:
    """The leaves of a value that are numbers, strings or None, by place."""
    return {place: part for place, part in within(value).items() if isinstance(part, int | float | str | None)}


def _attributes(value: Any) -> dict[str, Any]:
    """An object's own attributes by name, from its dictionary or its slots."""
    state = object.__getstate__(value)
    kinds = state if isinstance(state, tuple) else (state,)
    return {name: part for kind in kinds for name, part in (kind or {}).items()}


def leaves(value: Any, place: Place, around: tuple[Any, ...] = ()) -> Iterator[tuple[Place, Any]]:
    """The leaves of a value at a place, each with its own place; a reference to an enclosing value counts as a leaf.

    `around` are the values that enclose it.
    """
    held = None if any(value is one for one in around) else parts(value)
    if held is None:
        yield place, value
        return
    for key, part in held.items():
        yield from leaves(part, (*place, key), (*around, value))


def with_leaves(value: Any, place: Place, change: Callable[[Place, Any], Any]) -> Any:
    """A copy with `change(place, leaf)` in place of each leaf; objects in which nothing changes are not copied."""
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
    made[id(value)] = value, copied  # before its parts, which may refer to it
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
    """A copy with `change(tensor)` in place of each tensor within it; objects without tensors are not copied."""
    return with_leaves(value, (), lambda _, leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)
