"""What this process keeps of the memory that it has freed: glibc's heap. Where there is none, nothing happens.

Pass after pass asks for tensors of the same sizes. glibc gives what is freed at the heap's end back to the system, and
every page of the next tensor then costs a fault, which takes longer than the arithmetic on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of `mallopt`: with how much free at its end the heap is cut, and how large a tensor has pages of its own."""
_KEEPING = (2**31 - 1, 2**28)
_AS_EVER = (2**26, 2**25)
"""Bytes for the two. The latter are what glibc's own rule ends at once large tensors have been freed."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """Within this context, or a function that it decorates, memory that is freed is kept for what is asked for next.

    Tensors of 256 MiB and more go back to the system at once, as ever: they cost little beside what is done with them,
    and what they leave between other tensors could be too much to waste.
    """
    _set(*_KEEPING)
    try:
        yield
    finally:
        _set(*_AS_EVER)
        trim_heap()


def trim_heap() -> None:
    """Give memory that was freed back to the system, which would count it as used."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(trim: int, mmap: int) -> None:
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, trim)
        library.mallopt(_MMAP_THRESHOLD, mmap)
