"""Python's search for garbage, put off where a library builds much that stays: each search goes through all of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_RARELY = 100_000
"""Containers more than were dropped since the last search; Python's own is 700, a command imports some 400,000."""


@contextmanager
def no_search() -> Iterator[None]:
    """Within this context there is none."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


@contextmanager
def few_searches() -> Iterator[None]:
    """For all of a program: it is done rarely, and not at the end, when all memory goes back anyway.

    Unless some library would complain of what is left there then.
    """
    before = gc.get_threshold()
    gc.set_threshold(_RARELY, *before[1:])
    try:
        yield
    finally:
        if not _leaks_are_told():
            gc.freeze()
        gc.set_threshold(*before)


def _leaks_are_told() -> bool:
    """Whether a library is loaded that is bound by nanobind, as Triton is: it says at the end what was not cleared."""
    return any(kind.__module__ == "nanobind" for kind in type.__subclasses__(type))
