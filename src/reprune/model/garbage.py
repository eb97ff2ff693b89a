"""Defers Python's garbage collection where a library builds many objects that stay: each collection visits them all."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_RARELY = 100_000
"""The surplus of new containers over freed ones that starts a collection. Python's default is 700, and a command's
imports create some 400,000."""


@contextmanager
def no_search() -> Iterator[None]:
    """Within this context no collection runs."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


@contextmanager
def few_searches() -> Iterator[None]:
    """For a whole program: collect rarely, and not at its end, when all memory is returned anyway.

    It is collected at the end if a library would otherwise report the remaining objects as leaks.
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
    """Whether a library bound by nanobind, such as Triton, is loaded: it reports leaked objects at the end."""
    return any(kind.__module__ == "nanobind" for kind in type.__subclasses__(type))
