"""Runs a model in float32 while its weights are kept in half precision. Knows nothing of why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from reprune.model.linears import is_linear

_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """A context in which each module's own weights are float32 while it runs, so few float32 copies exist at a time."""
    kept: dict[nn.Module, dict[str, nn.Parameter]] = {}

    def before(module: nn.Module, _: Any) -> None:
        if half := _half(module):
            kept[module] = half
            wide = {name: nn.Parameter(weight.float(), requires_grad=False) for name, weight in half.items()}
            module._parameters.update(wide)

    def after(module: nn.Module, *_: Any) -> None:
        module._parameters.update(kept.pop(module, {}))

    with ExitStack() as stack:
        for module in model.modules():
            if _half(module):
                stack.enter_context(module.register_forward_pre_hook(before))
                stack.enter_context(module.register_forward_hook(after, always_call=True))
        yield


def widen_after_(model: nn.Module, decoder: nn.Module) -> None:
    """Make the weights of all linears outside a model's decoder float32, such as its head's."""
    within = set(decoder.modules())
    for module in model.modules():
        if module not in within and is_linear(module) and _half(module):
            module.weight = nn.Parameter(module.get_parameter("weight").float(), requires_grad=False)


def _half(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters in half precision, by name."""
    own = module.named_parameters(recurse=False)
    return {name: parameter for name, parameter in own if parameter.dtype in _HALF}
