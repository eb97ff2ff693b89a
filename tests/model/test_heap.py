"""The heap: what is freed stays with the process within `kept_heap`, and goes back to the system once it is over."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from reprune.model.heap import kept_heap, trim_heap

from reprune.engine.peak_memory import resident_bytes
from reprune.model.full_speed import full_speed

_HAS_HEAP = hasattr(ctypes.CDLL(None), "mallopt") and Path("/proc/self/statm").exists()
_MIB = 2**20
_TRIM, _MMAP = -1, -3  # of glibc's malloc.h
needs_heap = pytest.mark.skipif(not _HAS_HEAP, reason="the system's heap is not glibc's")


def _kept_of(size: int) -> int:
    """Of a tensor of so many bytes, how many this process still has once it is freed."""
    trim_heap()
    before = resident_bytes()
    tensor = torch.ones(size, dtype=torch.uint8)
    assert resident_bytes() - before > 0.9 * size
    del tensor
    return resident_bytes() - before


@needs_heap
def test_what_is_freed_is_kept_and_given_back_at_the_end() -> None:
    assert _kept_of(64 * _MIB) < 8 * _MIB  # it is more than glibc would ever keep by itself
    with full_speed():
        assert _kept_of(64 * _MIB) > 56 * _MIB
        kept = resident_bytes()
    assert kept - resident_bytes() > 48 * _MIB
    assert _kept_of(64 * _MIB) < 8 * _MIB


@needs_heap
def test_a_very_large_tensor_goes_back_at_once() -> None:
    with kept_heap():
        assert _kept_of(320 * _MIB) < 8 * _MIB


@needs_heap
def test_it_ends_whatever_happens() -> None:
    with pytest.raises(KeyError), kept_heap():
        raise KeyError("any")
    assert _kept_of(64 * _MIB) < 8 * _MIB


def test_a_system_without_such_a_heap_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with kept_heap():
        assert torch.ones(8).sum() == 8


class _Old:
    """A library whose `mallopt` takes no larger threshold than glibc did before 2.35, or none at all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.set: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == _MMAP and value > self.most:
            return 0
        self.set[parameter] = value
        return 1

    def malloc_trim(self, _: int) -> int:
        return 1


@pytest.mark.parametrize(("most", "wanted"), [(2**25, {_MMAP: 2**25, _TRIM: 2**31 - 1}), (0, {})])
def test_an_older_heap_keeps_what_it_can(most: int, wanted: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One threshold without the other would have glibc give each tensor pages of its own."""
    library = _Old(most)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    with kept_heap():
        assert library.set == wanted
