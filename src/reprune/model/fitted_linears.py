"""Linears while they are fitted, with autocast or without: the same values in less time and memory.

Autocast casts the inputs and weights of each linear and keeps both for the gradients, so linears that read the same
inputs keep one copy each. Here they share a copy, and weights are cast again in the backward pass. Where the inputs
need a gradient only for a scale in them, that gradient is computed without a product.
"""

from __future__ import annotations

import weakref
from typing import Any, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

_LEAST = 1e-4  # of a scale's largest value: dividing by less would be too inexact


@final
class FittedLinears(TorchFunctionMode):
    """While it is entered, linears of float32 weights that require gradients are computed this way."""

    def __init__(self) -> None:
        super().__init__()
        self._cast_last: tuple[_Same, Tensor] | None = None
        self._scaled: tuple[_Same, Tensor] | None = None

    def scaled(self, states: Tensor, scale: Tensor) -> None:
        """Take note of states (..., columns) that need a gradient only for their scale (columns,).

        It follows from the gradient of a linear's weights W. For y = W (scale * x), summed over all states,

            by_W = sum of by_y (scale * x)'    and    by_scale = sum of x * (W' by_y),

        so scale * by_scale is the sum of W * by_W over its rows.
        """
        sizes = scale.detach().abs()
        if isinstance(scale, FakeTensor) or bool(sizes.min() > _LEAST * sizes.max()):
            self._scaled = _Same(states), scale

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear and _is_ours(*args, **(kwargs or {})):
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        cast, scale = self._cast(input), None
        if self._scaled is not None and self._scaled[0].is_(input):
            input, scale = input.detach(), self._scaled[1]
        return _Linear.apply(input, cast, weight, bias, scale)  # type: ignore[no-untyped-call]  # PyTorch's own

    def _cast(self, inputs: Tensor) -> Tensor:
        """The inputs in the products' dtype; a tensor that several linears read is cast once."""
        dtype = _of_products(inputs.device.type)
        if self._cast_last is not None and self._cast_last[0].is_(inputs) and self._cast_last[1].dtype == dtype:
            return self._cast_last[1]
        cast = inputs.detach().to(dtype)
        self._cast_last = _Same(inputs), cast
        return cast


class _Same:
    """A tensor at its present version, not kept alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = weakref.ref(tensor), tensor._version

    def is_(self, tensor: Tensor) -> bool:
        return self._tensor() is tensor and self._version == tensor._version


def _of_products(device: str) -> torch.dtype:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def _is_ours(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    del bias
    dtypes = torch.float32, _of_products(input.device.type)
    return weight.dtype == torch.float32 and weight.requires_grad and input.dtype in dtypes


@final
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, cast: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(cast, weight, scale)
        ctx.dtypes = inputs.dtype, None if bias is None else bias.dtype
        outputs: Tensor = linear(cast, weight.to(cast.dtype), None if bias is None else bias.to(cast.dtype))
        # With a bias they may be a view, and autograd forbids in-place operations on a view that a Function returns.
        return torch.ops.aten._unsafe_view(outputs, outputs.shape)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient,) = outer
        cast, weight, scale = ctx.saved_tensors
        by_inputs = by_weight = by_bias = by_scale = None
        if ctx.needs_input_grad[0]:
            by_inputs = (gradient @ weight.to(cast.dtype)).to(ctx.dtypes[0])
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[2]:
            by_weight = (rows.T @ cast.reshape(-1, cast.shape[-1])).to(weight.dtype)
        if ctx.needs_input_grad[3]:
            by_bias = rows.sum(0).to(ctx.dtypes[1])
        if ctx.needs_input_grad[4]:
            by_scale = (weight * by_weight).sum(0).div_(scale)
        return by_inputs, None, by_weight, by_bias, by_scale
