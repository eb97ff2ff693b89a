"""Linears whose products are in half precision, with gradients, as autocast has them but in less memory.

Autocast casts a linear's inputs and weights, and keeps both for the gradients: of linears that read the same inputs
each its own copy of these. Here the copy is one, and weights are cast anew for the gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


@final
class HalfLinears(TorchFunctionMode):
    """While it is entered, linears of float32 weights that record gradients are computed so, where autocast is on."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is linear and _is_ours(*args, **(kwargs or {})):
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return _HalfLinear.apply(input, self._cast(input), weight, bias)  # type: ignore[no-untyped-call]  # PyTorch's own

    def _cast(self, inputs: Tensor) -> Tensor:
        """The inputs in half precision; the same tensor's are cast once."""
        if self._last is not None:
            last, version, cast = self._last
            if last() is inputs and version == inputs._version:
                return cast
        cast = inputs.detach().to(torch.get_autocast_dtype(inputs.device.type))
        self._last = weakref.ref(inputs), inputs._version, cast
        return cast


def _is_ours(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    del bias
    device = input.device.type
    return (
        weight.dtype == torch.float32
        and weight.requires_grad
        and torch.is_autocast_enabled(device)
        and input.dtype in (torch.float32, torch.get_autocast_dtype(device))
    )


@final
class _HalfLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, cast: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(cast, weight)
        ctx.dtypes = inputs.dtype, None if bias is None else bias.dtype
        return linear(cast, weight.to(cast.dtype), None if bias is None else bias.to(cast.dtype))

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient,) = outer
        cast, weight = ctx.saved_tensors
        by_inputs = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_inputs = (gradient @ weight.to(cast.dtype)).to(ctx.dtypes[0])
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[2]:
            by_weight = (rows.T @ cast.reshape(-1, cast.shape[-1])).to(weight.dtype)
        if ctx.needs_input_grad[3]:
            by_bias = rows.sum(0).to(ctx.dtypes[1])
        return by_inputs, None, by_weight, by_bias
