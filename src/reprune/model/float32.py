"""Float32 products on the CPU, as fast as it can do them: by oneDNN where MKL leaves half of the processor idle.

PyTorch's wheels multiply float32 matrices by MKL, which on AMD's processors does without AVX-512. oneDNN uses it, but
PyTorch asks it for float32 products only where they may be rounded to bfloat16. oneDNN has such rounded products for
AMX, which no AMD processor has, and else computes exact ones. So it is asked there, once a trial has come out exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


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
