"""Restores PyTorch's default settings for a while, whatever a caller has changed. Knows nothing of models."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import backends

_KINDS = ("cpu", "cuda")
"""Types of devices, each with its own autocast."""
_SUMS = {
    "allow_bf16_reduced_precision_reduction": True,
    "allow_fp16_reduced_precision_reduction": True,
    "allow_fp16_accumulation": False,
}
"""How a GPU sums in products of half precision, as PyTorch starts; releases before 2.7 lack the last."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """A context, or decorator, in which a caller's settings change no result, and which leaves them as they were.

    Within it gradients are recorded, autocast is off, new tensors are float32 and on the CPU by default, and float32
    products are computed in float32. If the caller has asked for deterministic algorithms, they are used where there
    are some, and the other operations run all the same. The random numbers that the caller draws next, from PyTorch or
    Python, are those that it would have drawn without it.
    """
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        _leave_autocast(stack)
        _leave_rounding(stack)
        _leave_sums(stack)
        _leave_refusals(stack)
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if not torch.cuda.is_initialized():
            stack.callback(_seed_cuda)
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices, device_type="cuda"))
        stack.callback(random.setstate, random.getstate())  # datasketch draws an index's name from Python's
        yield


def _leave_autocast(stack: ExitStack) -> None:
    """Leave all of autocast's contexts until the stack is closed.

    Turning autocast off is not enough: casts of weights made in inner contexts are cached until the outermost context
    ends, and a window's weights change in place.
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
    """Forbid TF32 and bfloat16 for float32 products until the stack is closed.

    The environment may have allowed them too (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).
    """
    # General settings first: an operation without a setting of its own follows them.
    wide: list[Any] = [backends, backends.mkldnn, backends.cudnn]
    matmul: list[Any] = [backends.cuda.matmul, getattr(backends.mkldnn, "matmul", None)]
    places = [place for place in wide + matmul if hasattr(place, "fp32_precision")]  # since PyTorch 2.9
    if places and all(place.fp32_precision in ("none", "ieee") for place in places):
        return
    older: str | None = None
    with suppress(RuntimeError):  # raised if a caller has changed the newer settings
        older = torch.get_float32_matmul_precision()
    for place in places:
        stack.callback(setattr, place, "fp32_precision", place.fp32_precision)
        place.fp32_precision = "none"
    if older is not None:
        stack.callback(torch.set_float32_matmul_precision, older)
    torch.set_float32_matmul_precision("highest")


def _leave_sums(stack: ExitStack) -> None:
    """Sum in products of half precision as PyTorch does at its start, until the stack is closed."""
    for name, usual in _SUMS.items():
        if (value := getattr(backends.cuda.matmul, name, usual)) != usual:
            stack.callback(setattr, backends.cuda.matmul, name, value)
            setattr(backends.cuda.matmul, name, usual)


def _leave_refusals(stack: ExitStack) -> None:
    """Run also what has no deterministic implementation until the stack is closed, instead of raising.

    Such as a GPU's selection of the k-th number: which of several equal ones it finds is left open, but no result
    depends on that.
    """
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        stack.callback(torch.use_deterministic_algorithms, True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")


def _nest(contexts: int) -> None:
    """Change autocast's count of nested contexts by `contexts`, which may be negative."""
    step = torch.autocast_increment_nesting if contexts > 0 else torch.autocast_decrement_nesting
    for _ in range(abs(contexts)):
        step()


def _seed_cuda() -> None:
    """If CUDA was initialized meanwhile, seed it with the caller's seed, with which it would have started."""
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(torch.initial_seed())
