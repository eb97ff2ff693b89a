"""The gradients of root mean square norms, in less time and memory than those of the operations that make them up.

Of these each has a gradient of its own, which reads and writes all states, and some are kept for it; here a norm is one
function, which keeps what enters it. Its values are the module's own. Which of a block's modules are such norms is
learned by running them.
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

_EPSILONS = ("eps", "variance_epsilon", "epsilon")  # what modules call it
_OFFSETS = (0.0, 1.0)  # what modules add to their weights
_CLOSE = 1e-5  # relative, hundred times float32's rounding
_TRIED = (1.0, 1e-3)  # sizes of states; at the second one an epsilon of 1e-6 counts as much as they do


@final
@dataclass(frozen=True)
class RmsNorm:
    """A module that makes of x: x / sqrt(mean(x^2) + epsilon) * (offset + weight), over the last dimension."""

    module: nn.Module
    epsilon: float
    offset: float

    def run(self, scaled: Scaled, *args: Any, **kwargs: Any) -> Any:
        """What the module's forward gives; `scaled` is told of outputs that need a gradient for their scale alone."""
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
    """The modules of a block that are such norms; what weights they have, if any, does not matter."""
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
    except Exception:  # whatever a module raises that is no such norm
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
    """Within this context these modules are computed as one function each.

    `scaled` is told of outputs that need a gradient for their scale alone, and of that scale.
    """
    for norm in norms:
        norm.module.forward = partial(norm.run, scaled)
    try:
        yield
    finally:
        for norm in norms:
            del norm.module.forward


def _factors(states: Tensor, epsilon: float) -> Tensor:
    """What the states are multiplied by to be normed, (..., 1), float32."""
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
        # Layer norm's own gradient, of a mean of zero, less what it takes away as its mean moves with the inputs.
        by_states, by_scale, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, inputs, [len(scale)], torch.zeros_like(factors), factors, scale, None, [True, True, False]
        )
        by_states.add_((gradient @ scale).div_(len(scale)).unsqueeze(-1).mul_(factors))
        back = sorted(range(len(order)), key=order.__getitem__)
        return by_states.permute(back).to(states.dtype), by_scale, None, None


def _memory_order(states: Tensor) -> list[int]:
    """Its dimensions as they lie in memory, but for the last, which stays."""
    strides = states.stride()
    return [*sorted(range(states.dim() - 1), key=lambda place: -strides[place]), states.dim() - 1]
