"""The gradients of root mean square norms, in less time and memory than by the operations that make them up.

Each of these operations has its own backward, which reads and writes all states, and some keep tensors for it. Here a
norm is one function, which keeps only its inputs. Its outputs are computed by the module itself. Running a block's
modules shows which of them are such norms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

Scaled = Callable[[Tensor, Tensor], None]

_EPSILONS = ("eps", "variance_epsilon", "epsilon")  # attribute names in modules
_OFFSETS = (0.0, 1.0)  # what modules add to their weights
_CLOSE = 1e-5  # relative, a hundred times float32's rounding
_TRIED = (1.0, 1e-3)  # scales of states; at the second, an epsilon of 1e-6 is as large as their mean square


@final
@dataclass(frozen=True)
class RmsNorm:
    """A module that computes x / sqrt(mean(x^2) + epsilon) * (offset + weight), over the last dimension."""

    module: nn.Module
    epsilon: float
    offset: float

    def run(self, scaled: Scaled, *args: Any, **kwargs: Any) -> Any:
        """The module's forward; calls `scaled(outputs, scale)` if only the scale of the outputs needs a gradient."""
        own = partial(type(self.module).forward, self.module)
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            return own(*args, **kwargs)
        (states,) = args
        weight = self.module.get_parameter("weight")
        scale = weight + self.offset if self.offset else weight
        outputs = _RmsNorm.apply(states, scale, self.epsilon, own)  # type: ignore[no-untyped-call]  # PyTorch's own
        if scale.requires_grad and not states.requires_grad:
            scaled(outputs, scale)
        return outputs


@torch.no_grad()
def find_norms(block: nn.Module) -> list[RmsNorm]:
    """The modules of a block that are such norms; the values of their weights do not matter."""
    return [norm for module in block.modules() if (norm := _as_norm(module)) is not None]


def _as_norm(module: nn.Module) -> RmsNorm | None:
    weight = getattr(module, "weight", None)
    epsilon = next((own for name in _EPSILONS if isinstance(own := getattr(module, name, None), float)), None)
    if epsilon is None or not isinstance(weight, nn.Parameter) or weight.dim() != 1 or "forward" in vars(module):
        return None
    if any(True for _ in module.children()) or len(list(module.parameters())) > 1:
        return None
    states = torch.arange(2.0 * len(weight)).view(2, -1).cos()
    tried = copy.copy(module)
    scale = nn.Parameter(1.5 + states[1], requires_grad=False)
    tried._parameters = {"weight": scale}
    try:
        found = [(tried(size * states), size * states * _factors(size * states, epsilon)) for size in _TRIED]
    except Exception:  # whatever a module raises that is not such a norm
        return None
    for offset in _OFFSETS:
        if all(_alike(given, normed * (scale + offset)) for given, normed in found):
            return RmsNorm(module, epsilon, offset)
    return None


def _alike(given: Any, expected: Tensor) -> bool:
    return (
        isinstance(given, Tensor)
        and given.shape == expected.shape
        and given.dtype == expected.dtype
        and bool((given - expected).abs().max() <= _CLOSE * expected.abs().max())
    )


@contextmanager
def as_one(norms: Sequence[RmsNorm], scaled: Scaled) -> Iterator[None]:
    """Within this context each of these norms is one function.

    `scaled(outputs, scale)` is called for outputs of which only the scale needs a gradient.
    """
    for norm in norms:
        norm.module.forward = partial(norm.run, scaled)
    try:
        yield
    finally:
        for norm in norms:
            del norm.module.forward


def _factors(states: Tensor, epsilon: float) -> Tensor:
    """The factors that norm the states, (..., 1), float32."""
    lengths: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
    return lengths.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()


@final
class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, scale: Tensor, epsilon: float, own: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(states, scale, _factors(states, epsilon))
        outputs: Tensor = own(states)
        return outputs

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        states, scale, factors = ctx.saved_tensors
        order = _memory_order(states)
        gradient, inputs, factors = (one.permute(order).float().contiguous() for one in (outer[0], states, factors))
        # Layer norm's gradient for a mean of zero; the term that its mean contributes there is added back.
        by_states, by_scale, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, inputs, [len(scale)], torch.zeros_like(factors), factors, scale, None, [True, True, False]
        )
        by_states.add_((gradient @ scale).div_(len(scale)).unsqueeze(-1).mul_(factors))
        back = sorted(range(len(order)), key=order.__getitem__)
        return by_states.permute(back).to(states.dtype), by_scale, None, None


def _memory_order(states: Tensor) -> list[int]:
    """The dimensions in their order in memory, except for the last, which stays last."""
    strides = states.stride()
    return [*sorted(range(states.dim() - 1), key=lambda place: -strides[place]), states.dim() - 1]
