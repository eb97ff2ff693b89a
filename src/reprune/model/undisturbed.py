"""PyTorch's settings as they are when it starts, whatever a caller has made of them. Knows nothing of models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import backends

_KINDS = ("cpu", "cuda")
"""Of devices, with an autocast of their own."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """A context, or decorator, in which what a caller has set changes no number, and nothing set is left behind.

    Gradients are recorded, nothing is cast by itself, tensors are of float32 and on the CPU unless it is said
    otherwise, products of float32 are no others; the random numbers that a caller draws next, of PyTorch's or Python's
    own, are those that it would have drawn.
    """
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        _leave_autocast(stack)
        _leave_rounding(stack)
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if not torch.cuda.is_initialized():
            stack.callback(_seed_cuda)
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices, device_type="cuda"))
        stack.callback(random.setstate, random.getstate())  # datasketch draws the name of an index from it
        yield


def _leave_autocast(stack: ExitStack) -> None:
    """Leave all of its contexts until the stack is closed.

    To turn it off is not enough: what the contexts within cast of weights is kept until the outermost one ends, and a
    window's weights change in place.
    """
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    if not depth:
        return
    stack.callback(_nest, depth)
    stack.callback(torch.clear_autocast_cache)
    torch.clear_autocast_cache()
    _nest(-depth)
    for kind in _KINDS:
        stack.callback(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
        torch.set_autocast_enabled(kind, False)
    stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
    torch.set_autocast_cache_enabled(True)


def _leave_rounding(stack: ExitStack) -> None:
    """Have no product of float32 be one of TF32 or bfloat16 until the stack is closed.

    It may be the environment that has them so (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).
    """
    # What is for several comes first: an operation of which nothing is said itself has that.
    wide: list[Any] = [backends, backends.mkldnn, backends.cudnn]
    matmul: list[Any] = [backends.cuda.matmul, getattr(backends.mkldnn, "matmul", None)]
    places = [place for place in wide + matmul if hasattr(place, "fp32_precision")]  # since PyTorch 2.9
    if places and all(place.fp32_precision in ("none", "ieee") for place in places):
        return
    older: str | None = None
    with suppress(RuntimeError):  # it says nothing where a caller has set the newer ones
        older = torch.get_float32_matmul_precision()
    for place in places:
        stack.callback(setattr, place, "fp32_precision", place.fp32_precision)
        place.fp32_precision = "none"
    if older is not None:
        stack.callback(torch.set_float32_matmul_precision, older)
    torch.set_float32_matmul_precision("highest")


def _nest(contexts: int) -> None:
    """Count so many contexts of autocast more, or fewer."""
    step = torch.autocast_increment_nesting if contexts > 0 else torch.autocast_decrement_nesting
    for _ in range(abs(contexts)):
        step()


def _seed_cuda() -> None:
    """Where CUDA was begun with meanwhile, give it the caller's seed, which it would have begun with."""
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(torch.initial_seed())
