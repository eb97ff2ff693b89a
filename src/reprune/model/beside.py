"""What blocks hand to the next ones beside the hidden states, and whether it matters.

Some blocks return more than states, and some models pass it on. Where the next block makes nothing of it, or it is None
in truth, blocks can still be run one by one. That is found out by running a block on a few tokens with weights of zero:
once with something in that place which nothing can be done with.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.forms import Beside
from reprune.model.plain_kernels import plain_kernels

_UNPROMISED = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.13 and later have its name


def without_beside(call: Call) -> Call:
    """The call with None where a block before put something out."""
    args = tuple(None if isinstance(value, Beside) else value for value in call.args)
    kwargs = {key: None if isinstance(value, Beside) else value for key, value in call.kwargs.items()}
    return replace(call, args=args, kwargs=kwargs)


def passed_beside(call: Call) -> list[Beside]:
    """What a call is passed of it."""
    return [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Beside)]


def refuse_caches(model: str, calls: Sequence[Call]) -> None:
    """Raise `UnsupportedModelError` where a model hands its blocks a cache to write to though it was to keep none."""
    for index, call in enumerate(calls):
        for value in (*call.args, *call.kwargs.values()):
            if isinstance(value, Cache):
                raise UnsupportedModelError(
                    f"{model}: block {index} is passed a {type(value).__name__}, though use_cache is False; blocks "
                    "that write to a cache in each pass cannot be pruned one by one: have its forward make none then."
                )


@torch.no_grad()
def matters(block: nn.Module, call: Call, before: nn.Module, call_before: Call, states: Tensor) -> bool:
    """Whether a block makes something of what the one before it puts out beside the hidden states.

    Args:
        block, before: on the meta device; left as they are.
        call, call_before: what they are passed.
        states: of the shape that enters them, as a stream's.
    """
    some = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    try:
        args, kwargs = call.bind(some)
        run_without_weights(block, args, kwargs)
    except Exception:  # whatever comes of it: it was looked at
        try:
            args, kwargs = without_beside(call_before).bind(some)
            outputs = run_without_weights(before, args, kwargs)
            return any(outputs[beside.place] is not None for beside in passed_beside(call))
        except Exception:  # it cannot be known
            return True
    return False


def without_weights(module: nn.Module) -> nn.Module:
    """A copy on the CPU with weights that take no memory: zeros, and ones for vectors, that normalize as they are."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for key, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, key, nn.Parameter(_without_memory(parameter), requires_grad=False))
    return copied.eval()


def run_without_weights(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module puts out, with such weights."""
    with plain_kernels(torch.device("cpu")):
        return without_weights(module)(*args, **kwargs)


def _without_memory(parameter: nn.Parameter) -> Tensor:
    if parameter.dim() < 2:
        return torch.ones(parameter.shape)
    shape = tuple(parameter.shape)
    try:
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))  # pages that nobody writes to
    except MemoryError:  # more of them, as of all experts of a layer, than the system promises anybody
        pages = mmap.mmap(-1, 4 * parameter.numel(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _UNPROMISED)
        return torch.from_numpy(np.frombuffer(pages, dtype=np.float32).reshape(shape))
