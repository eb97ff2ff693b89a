"""On which device, and with products in which dtype, a model is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from reprune.doors.threads import said_of_threads
from reprune.errors import HalfPrecisionError, InputError
from reprune.math.ranks import Ranks
from reprune.model.full_speed import cpu_capabilities
from reprune.planning.devices import is_device

Value = TypeVar("Value")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_INSTRUCTIONS = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}
"""Of x86 processors, as PyTorch names them: any of these multiplies faster than in float32."""


def settle_device(device: str | torch.device) -> str:
    """`auto` is CUDA where there is one; raises `InputError` for a device that is not there."""
    device = str(device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not is_device(device):
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N.")
    if _is_absent(device):
        raise InputError(
            f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu."
        )
    return device


def check_begun_on(device: str, run: str | os.PathLike[str]) -> None:
    """Raise `InputError` where this machine lacks the device that a run began on."""
    if _is_absent(device):
        raise InputError(
            f"{run}: this run began on {device}, and this machine has {torch.cuda.device_count()} CUDA devices; resume "
            f"it on a machine that has {device}."
        )


def _is_absent(device: str) -> bool:
    return device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count()


def settle_precision(precision: str, device: str) -> str:
    """`auto` is bfloat16 where the device multiplies it faster than float32."""
    if precision not in ("auto", *DTYPES):
        raise InputError(f"precision {precision}: expected auto, {', '.join(DTYPES)}.")
    if precision != "auto":
        return precision
    fast = _gpu_multiplies_bfloat16(device) if device.startswith("cuda") else _cpu_multiplies("bfloat16")
    return "bfloat16" if fast else "float32"


def settle_together(device: str | torch.device, precision: str, ranks: Ranks) -> tuple[str, str]:
    """Device and precision of all processes of a run, whose machines may differ: what `auto` is on the first's.

    Raises:
        InputError: there is no such device on one of them, or no such precision.
    """

    def settled() -> list[str]:
        where = settle_device(device)
        return [where, settle_precision(precision, where)]

    where, products = ranks.first_does(settled)
    return settle_device(where), products


def slowness(precision: str, device: str) -> list[str]:
    """What to say where a model is run slower than it could be on this machine."""
    said = _slow_precision(precision, device), said_of_threads() if device == "cpu" else None
    return [one for one in said if one is not None]


def _slow_precision(precision: str, device: str) -> str | None:
    """Of one that was asked for by name, if products in it are slower than in float32."""
    slow = (
        precision in _INSTRUCTIONS
        and device == "cpu"
        and cpu_capabilities().get("architecture") == "x86_64"  # of others the names of instructions are not known here
        and not _cpu_multiplies(precision)
    )
    return f"this CPU multiplies slowly in {precision}; precision auto is faster" if slow else None


def _cpu_multiplies(precision: str) -> bool:
    """Whether the CPU has instructions for such products (without them they are slower than in float32)."""
    return any(cpu_capabilities().get(name, False) for name in _INSTRUCTIONS[precision])


def _gpu_multiplies_bfloat16(device: str) -> bool:
    """Whether this GPU has units for them: NVIDIA's before Ampere know bfloat16, but multiply it without."""
    return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= 8


def in_precision(precision: str, device: str, work: Callable[[str], Value], notify: Callable[[str], None]) -> Value:
    """What some work gives that is told in which dtype products are.

    `auto` is what `settle_precision` says, and float32 where a model turns out not to be computable in that.

    Raises:
        InputError: there is no such precision.
        HalfPrecisionError: the model cannot be computed in the one that was asked for by name.
    """
    settled = settle_precision(precision, device)
    for slow in slowness(precision, device):
        notify(f"note: {slow}")
    try:
        return work(settled)
    except HalfPrecisionError as error:
        if precision != "auto":
            raise
        notify(f"note: {error.reason}; so its products are in float32")
    return work("float32")
