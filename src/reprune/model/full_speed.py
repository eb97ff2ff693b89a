"""As fast as this processor can do it: what passes through blocks is run within this context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reprune.model.float32 import fast_float32
from reprune.model.heap import kept_heap


@contextmanager
def full_speed() -> Iterator[None]:
    """A context, or decorator, in which products and memory come cheap; no number is of another kind for it."""
    with fast_float32(), kept_heap():
        yield
