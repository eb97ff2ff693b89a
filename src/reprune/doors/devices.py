"""Decides the device that a model runs on and the dtype of its products."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from reprune.doors.threads import said_of_threads
from reprune.errors import HalfPrecisionError, InputError
from reprune.math.ranks import Ranks
from reprune.model.full_speed import cpu_capabilities
from reprune.model.gpus import is_ampere
from reprune.planning.devices import is_device

Value = TypeVar("Value")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_INSTRUCTIONS = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}
"""Of x86 CPUs, by PyTorch's names; with any of these, products are faster than in float32."""


def settle_device(device: str | torch.device) -> str:
    """Replace `auto` by CUDA if there is a GPU, else by the CPU; raises `InputError` for a device that is not there."""
    device = str(device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not is_device(device):
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N.")
    if _is_absent(device):
        raise InputError(
            f"--device {device}: {_has_devices()}; use --device {'cuda:0 or ' if torch.cuda.device_count() else ''}cpu."
        )
    return device


def _has_devices() -> str:
    count = torch.cuda.device_count()
    if not count and torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is built without CUDA, whatever this machine has"
    return f"this machine has {count or 'no'} CUDA device{'' if count == 1 else 's'}"


def check_begun_on(device: str, run: str | os.PathLike[str]) -> None:
    """Raise `InputError` if this machine lacks the device that a run began on."""
    if _is_absent(device):
        raise InputError(
            f"{run}: this run began on {device}, but {_has_devices()}; resume it on a machine that has {device}."
        )


def _is_absent(device: str) -> bool:
    return device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count()


def settle_precision(precision: str, device: str) -> str:
    """Replace `auto` by bfloat16 if the device multiplies it faster than float32, else by float32."""
    if precision not in ("auto", *DTYPES):
        raise InputError(f"precision {precision}: expected auto, {', '.join(DTYPES)}.")
    if precision != "auto":
        return precision
    fast = is_ampere(device) if device.startswith("cuda") else _cpu_multiplies("bfloat16")
    return "bfloat16" if fast else "float32"


def settle_together(device: str | torch.device, precision: str, ranks: Ranks) -> tuple[str, str]:
    """The device and precision of all processes of a run. Machines may differ, so `auto` is settled on the first.

    Raises:
        InputError: one of the machines lacks the device, or the precision is unknown.
    """

    def settled() -> list[str]:
        where = settle_device(device)
        return [where, settle_precision(precision, where)]

    where, products = ranks.first_does(settled)
    return settle_device(where), products


def slowness(precision: str, device: str) -> list[str]:
    """Notes if a model runs slower than it could on this machine."""
    said = _slow_precision(precision, device), said_of_threads() if device == "cpu" else None
    return [one for one in said if one is not None]


def _slow_precision(precision: str, device: str) -> str | None:
    """A note if products in the requested precision are slower than in float32."""
    slow = (
        precision in _INSTRUCTIONS
        and device == "cpu"
        and cpu_capabilities().get("architecture") == "x86_64"  # for others, the instructions are unknown here
        and not _cpu_multiplies(precision)
    )
    return f"this CPU multiplies slowly in {precision}; precision auto is faster" if slow else None


def _cpu_multiplies(precision: str) -> bool:
    """Whether the CPU has instructions for products in this precision; without them, float32 is faster."""
    return any(cpu_capabilities().get(name, False) for name in _INSTRUCTIONS[precision])


def in_precision(precision: str, device: str, work: Callable[[str], Value], notify: Callable[[str], None]) -> Value:
    """Call `work` with the settled precision and return its result.

    With `auto`, it is called again with float32 if the model cannot be computed in the settled precision.

    Raises:
        InputError: the precision is unknown.
        HalfPrecisionError: the model cannot be computed in the precision that was asked for by name.
    """
    settled = settle_precision(precision, device)
    for slow in slowness(precision, device):
        notify(f"note: {slow}")
    return or_in_float32(
        precision, lambda one: work(settled if one == precision else one), lambda said: notify(f"note: {said}")
    )


def or_in_float32(
    precision: str, work: Callable[[str], Value], note: Callable[[str], None], may: Callable[[], bool] = lambda: True
) -> Value:
    """Call `work` with the precision and return its result.

    With `auto`, it is called again with float32 if the model needs that and this `may` still be done.
    """
    try:
        return work(precision)
    except HalfPrecisionError as error:
        if precision != "auto" or not may():
            raise
        note(f"{error.reason}; float32 is used instead")
    return work("float32")
