"""What this process keeps of the memory that it has freed: glibc's heap. Where there is none, nothing happens.

Pass after pass asks for tensors of the same sizes. glibc gives what is freed at the heap's end back to the system, and
every page of the next tensor then costs a fault, which takes longer than the arithmetic on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of `mallopt`."""
_LARGE = 2**28
"""Bytes of a tensor that goes back to the system at once, as ever: that costs little beside what is done with it, and
what it would leave between other tensors could be too much to waste."""
_OF_GLIBC = 2**25
"""The same by glibc's own rule, once such tensors have been freed; before glibc 2.35 no more can be set."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """Within this context, or a function that it decorates, memory that is freed is kept for what is asked for next."""
    _set(2**31 - 1, _LARGE)
    try:
        yield
    finally:
        _set(2 * _OF_GLIBC, _OF_GLIBC)
        trim_heap()


def trim_heap() -> None:
    """Give memory that was freed back to the system, which would count it as used."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(free: int, large: int) -> None:
    """With so many bytes free at its end the heap is cut; a tensor of so many has pages of its own."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if library.mallopt(_MMAP_THRESHOLD, large) or library.mallopt(_MMAP_THRESHOLD, _OF_GLIBC):
            library.mallopt(_TRIM_THRESHOLD, free)
