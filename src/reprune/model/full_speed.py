"""As fast as this processor can do it: what passes through blocks is run within `full_speed`.

Float32 products: PyTorch's wheels multiply float32 matrices by MKL, which on AMD's processors does without AVX-512.
oneDNN uses it, but PyTorch asks it for float32 products only where they may be rounded to bfloat16. oneDNN has such
rounded products for AMX, which no AMD processor has, and else computes exact ones. So it is asked there, once a trial
has come out exact.

Memory: pass after pass asks for tensors of the same sizes. glibc gives what is freed at the heap's end back to the
system, and every page of the next tensor then costs a fault, which takes longer than the arithmetic on it. So its heap
is kept; where there is none of glibc's, nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of `mallopt`."""
_LARGE = 2**28
"""Bytes of a tensor that goes back to the system at once, as ever: that costs little beside what is done with it, and
what it would leave between other tensors could be too much to waste."""
_OF_GLIBC = 2**25
"""The same by glibc's own rule, once such tensors have been freed; before glibc 2.35 no more can be set."""


@contextmanager
def full_speed() -> Iterator[None]:
    """A context, or decorator, in which products and memory come cheap; no number is of another kind for it."""
    with fast_float32(), kept_heap():
        yield


@contextmanager
def fast_float32() -> Iterator[None]:
    """Within this context, or a function that it decorates, float32 products on the CPU take the faster of two ways.

    Both are of float32 throughout and differ in the order of their sums alone.
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
    """What has PyTorch choose; None in a release without it."""
    return getattr(torch.backends.mkldnn, "matmul", None)


def cpu_capabilities() -> dict[str, Any]:
    """What PyTorch knows of this processor; nothing in a release that does not say."""
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
    """Whether a product is one of float32: rounded to bfloat16 it would be off by 2^-9, here it must be by 2^-18."""
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    exact = a.double() @ b.double()
    return bool((a @ b - exact).norm() < 2**-18 * exact.norm())


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
