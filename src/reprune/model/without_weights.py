"""Runs a module with weights that take no memory, to see what it does with its inputs. Knows nothing of blocks."""

from __future__ import annotations

import copy
import math
import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reprune.model.plain_kernels import plain_kernels

_UNPROMISED = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named since Python 3.13


def without_weights(module: nn.Module) -> nn.Module:
    """A copy on the CPU with weights that take no memory: zeros, but ones for vectors, so that norms keep scale."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for key, parameter in list(part.named_parameters(recurse=False)):
            shape = tuple(parameter.shape)
            made = torch.ones(shape) if len(shape) < 2 else zeros_without_memory(shape)
            setattr(part, key, nn.Parameter(made, requires_grad=False))
    return copied.eval()


def run_without_weights(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The outputs of a module with such weights."""
    with plain_kernels(torch.device("cpu")):
        return without_weights(module)(*args, **kwargs)


def zeros_without_memory(shape: tuple[int, ...]) -> Tensor:
    """Zeros, float32, that take no memory as long as nothing writes to them."""
    try:
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))  # pages that are never written
    except MemoryError:  # more than the system commits to, such as for all experts of a layer
        pages = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _UNPROMISED)
        return torch.from_numpy(np.frombuffer(pages, dtype=np.float32).reshape(shape))
