"""What lies within a value: in a tuple, a list, a mapping, or an object that holds tensors. Knows nothing of models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn


def parts(value: Any) -> Mapping[Any, Any] | None:
    """By number, key or name what a value holds; None of one that is taken as a whole."""
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if isinstance(value, dict):
        return value
    if isinstance(value, Tensor | nn.Module | type):
        return None
    if is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    held: dict[str, Any] = getattr(value, "__dict__", {})
    return held if _hold_tensors(held.values()) else None


def _hold_tensors(values: Iterable[Any]) -> bool:
    return any(
        isinstance(one, Tensor)
        or (isinstance(one, tuple | list | dict) and _hold_tensors(one.values() if isinstance(one, dict) else one))
        for one in values
    )


def with_parts(value: Any, held: Mapping[Any, Any]) -> Any:
    """A value of the same kind that holds these."""
    if isinstance(value, tuple | list):
        return value._make(held.values()) if hasattr(value, "_make") else type(value)(held.values())
    made = copy.copy(value)
    for key, part in held.items():
        if isinstance(made, dict):
            made[key] = part
        else:
            object.__setattr__(made, key, part)  # frozen dataclasses too
    return made


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with other tensors in place of all that lie within it; objects that hold none stay what they are."""
    if isinstance(value, Tensor):
        return change(value)
    held = parts(value)
    if held is None:
        return value
    made = {key: with_tensors(part, change) for key, part in held.items()}
    if isinstance(value, tuple | list | dict) or any(made[key] is not part for key, part in held.items()):
        return with_parts(value, made)
    return value
