"""Cuts what is numbered into parts. Knows nothing of what that is."""

from __future__ import annotations


def slices(start: int, stop: int, size: int) -> list[slice]:
    """All numbers from `start` to before `stop`, so many at a time; the last slice may be shorter."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
