"""Faster products and allocations on the CPU: passes through blocks are run within `full_speed`.

Float32 products: PyTorch's wheels multiply float32 matrices by MKL, which does not use AVX-512 on AMD's processors.
oneDNN does, but PyTorch calls it for float32 products only if they may be rounded to bfloat16. oneDNN rounds them only
with AMX, which no AMD processor has, and otherwise computes exact ones. So rounding is allowed on AMD's processors,
once a trial has come out exact.

Memory: each pass allocates tensors of the same sizes. glibc returns memory that is freed at the heap's end to the
system, and then each page of the next tensor causes a page fault, which takes longer than the arithmetic on it. So the
heap is kept. Without glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`."""
_LARGE = 2**28
"""Bytes from which a tensor's memory still goes back to the system at once: for so large a tensor that costs little
beside the work on it, while the holes that it would leave in the heap could waste too much."""
_OF_GLIBC = 2**25
"""The highest value that glibc's own rule raises this threshold to; before glibc 2.35 no higher one can be set."""


@contextmanager
def full_speed() -> Iterator[None]:
    """A context, or decorator, in which products and allocations are faster; products keep float32's precision."""
    with fast_float32(), kept_heap():
        yield


@contextmanager
def fast_float32() -> Iterator[None]:
    """Within this context, or a function that it decorates, float32 products on the CPU use the faster library.

    Both compute in float32 throughout; they differ only in the order of their sums.
    """
    if not _is_better():
        yield
        return
    switch = _switch()
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def _switch() -> Any:
    """PyTorch's setting that chooses the library; None in a release without it."""
    return getattr(torch.backends.mkldnn, "matmul", None)


def cpu_capabilities() -> dict[str, Any]:
    """PyTorch's description of this processor; empty in a release without one."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


@cache
def _is_better() -> bool:
    capabilities = cpu_capabilities()
    if "AMD" not in capabilities.get("cpu_name", "") or capabilities.get("amx_tile") or capabilities.get("amx_bf16"):
        return False
    switch = _switch()
    if switch is None or not capabilities.get("avx512_f"):
        return False
    generator = torch.Generator().manual_seed(0)
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "bf16"
        return all(_is_exact(rows, 640, columns, generator) for rows, columns in ((64, 640), (640, 256), (256, 2048)))
    finally:
        switch.fp32_precision = before


def _is_exact(rows: int, inner: int, columns: int, generator: torch.Generator) -> bool:
    """Whether a product has float32's precision: rounded to bfloat16 it would be off by 2^-9; 2^-18 is allowed."""
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    exact = a.double() @ b.double()
    return bool((a @ b - exact).norm() < 2**-18 * exact.norm())


@contextmanager
def kept_heap() -> Iterator[None]:
    """Within this context, or a function that it decorates, freed memory is kept for the next allocations."""
    _set(2**31 - 1, _LARGE)
    try:
        yield
    finally:
        _set(2 * _OF_GLIBC, _OF_GLIBC)
        trim_heap()


def lasting(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor on the CPU that is to outlive many passes; its values are not set yet.

    If it is large it has its own mapping. glibc gives it one only if the heap has no free place of that size. After
    some passes it has, and later ones, which would miss the place, would make the heap larger by as much.
    """
    size = 4 * math.prod(shape)
    if size >= _LARGE:
        with suppress(OSError):  # PyTorch reports a lack of memory better
            mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            return torch.frombuffer(mapped, dtype=torch.float32).view(shape)
    return torch.empty(shape)


def trim_heap() -> None:
    """Return freed memory to the system, which would otherwise count it as used."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(free: int, large: int) -> None:
    """Trim the heap at `free` free bytes at its end; give a tensor of `large` bytes or more its own mapping."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if library.mallopt(_MMAP_THRESHOLD, large) or library.mallopt(_MMAP_THRESHOLD, _OF_GLIBC):
            library.mallopt(_TRIM_THRESHOLD, free)
