"""Cuts a range of numbers into parts. Knows nothing of what is numbered."""

from __future__ import annotations


def slices(start: int, stop: int, size: int) -> list[slice]:
    """The range from `start` to before `stop`, in slices of `size`; the last may be shorter."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
