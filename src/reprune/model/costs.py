"""Measures the cost of a block by running it on tensors without values: no weight is read and nothing is computed.

This works for any block that its model can run; no architecture needs a formula. A block that goes token by token, as a
scan does where its kernel is not installed, would take minutes for a long sample. It is run for three small numbers of
tokens instead, and its cost for many is extrapolated. A block that goes chunk by chunk cannot be extrapolated so, as
few tokens are padded to one chunk.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from reprune.model.block import Block, Call, Precision
from reprune.model.linears import Stack, find_linears
from reprune.model.nested import with_tensors
from reprune.model.products import storage

FEW = (8, 16, 24)  # tokens
MANY = 3_000
"""Operations of a forward and backward pass. Most blocks take hundreds for any length; a scan, some 40 a token."""


class TooManyError(Exception):
    """A block takes more operations than the limit."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a pass."""

    products: float  # in matrix products
    attention: float = 0.0  # in PyTorch's fused attention, which runs at another speed


@dataclass(frozen=True)
class BlockCosts:
    """The costs of one block for one sample."""

    parameters: int
    states: int  # bytes of the hidden states that enter it, float32
    forward: Flops  # of a forward pass
    both: Flops  # of a forward and a backward pass
    activations: float  # bytes kept from the forward pass for the backward pass
    operations: int = 0  # of both passes, of any size; 0 in an estimate, if it needs values, or if it never runs


def block_costs(
    module: nn.Module,
    one: tuple[Tensor, Call],
    two: tuple[Tensor, Call],
    precision: Precision,
    device: str = "cpu",
    stacks: Sequence[Stack] = (),
    most: int | None = None,
) -> BlockCosts:
    """Run a block, forward and backward, on fake tensors of the CPU.

    Args:
        module: the block, on the meta device; left as it is.
        one: the states that would enter it, (1, tokens, ...), and what it would be passed with them; only shapes
            matter.
        two: the same for two samples. The difference is what a sample takes: bytes that are kept only once for both,
            such as weights in another precision, do not count.
        precision: of its products.
        device: the type of device that it is costed for.
        stacks: its parameters that hold many matrices.
        most: the largest number of operations, of any size; None for no limit.

    Raises:
        TooManyError: the block takes more operations than `most`.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    tokens = one[0].shape[1]
    hidden = one[0].numel() // tokens
    entering = 4 * tokens * hidden
    if not one[1].form.runs:
        return BlockCosts(parameters, entering, Flops(0.0), Flops(0.0), 0.0)
    try:
        (forward, both, kept, operations), (_, _, kept_of_two, _) = (
            _run(copy.deepcopy(module), states.shape, call, precision, device, most) for states, call in (one, two)
        )
    except TooManyError:
        raise
    except Exception:  # what depends on values, such as the choice of experts, cannot run without them
        linears = find_linears(module, stacks)
        products = 2.0 * tokens * sum(linear.share * math.prod(linear.shape) for linear in linears)
        widths = hidden + sum(linear.share * linear.shape[0] for linear in linears)
        return BlockCosts(parameters, entering, Flops(products), Flops(3.0 * products), 8.0 * widths * tokens)
    return BlockCosts(parameters, entering, forward, both, kept_of_two - kept, operations)


def costs_of_many(cost: Callable[[int, int | None], BlockCosts], tokens: int) -> BlockCosts:
    """A block's costs for a sample of `tokens` tokens; for a scan, extrapolated from a few tokens.

    Args:
        cost: `block_costs` of the block, as a function of the number of tokens and of `most`.
        tokens: of one sample.
    """
    try:
        return cost(tokens, MANY)
    except TooManyError:
        few: list[BlockCosts] = []
        for some in FEW:
            few.append(cost(some, None))
            if not _may_scan(few):
                return cost(tokens, None)
        return extrapolated(few, tokens)


def _may_scan(few: Sequence[BlockCosts]) -> bool:
    """Whether a block's operations grow by the same number, not 0, at each step; an estimate is linear anyway."""
    steps = {after.operations - before.operations for before, after in pairwise(few)}
    return not few[0].operations or (len(steps) < 2 and 0 not in steps)


def extrapolated(few: Sequence[BlockCosts], tokens: int) -> BlockCosts:
    """A block's costs for `tokens` tokens, by the quadratic through its costs for the three numbers in `FEW`."""
    steps = tokens / FEW[0] - 1  # from FEW[0]; the distance between two of FEW is FEW[0] too

    def value(of: Callable[[BlockCosts], float]) -> float:
        one, two, three = (of(costs) for costs in few)
        return one + steps * (two - one) + steps * (steps - 1) / 2 * (three - 2 * two + one)

    return BlockCosts(
        few[0].parameters,
        round(value(lambda costs: costs.states)),
        Flops(value(lambda costs: costs.forward.products), value(lambda costs: costs.forward.attention)),
        Flops(value(lambda costs: costs.both.products), value(lambda costs: costs.both.attention)),
        value(lambda costs: costs.activations),
        round(value(lambda costs: costs.operations)),
    )


class _Counted(TorchDispatchMode):
    """Counts the operations within this context, and raises `TooManyError` beyond a limit."""

    def __init__(self, most: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's own
        self._most = most
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "prim":  # C++ calls these too, to ask for a device; an exception there ends the process
            self.operations += 1
            if self._most is not None and self.operations > self._most:
                raise TooManyError
        return func(*args, **(kwargs or {}))


def _run(
    module: nn.Module, shape: torch.Size, call: Call, precision: Precision, device: str, most: int | None
) -> tuple[Flops, Flops, float, int]:
    """The costs of a forward pass, and with the backward pass; bytes kept between them; operations of both."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    block = Block(0, module, torch.device("cpu"), precision)  # outside the mode: it finds norms by their values
    block.attends_by_products &= device == "cpu"
    with mode:
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(torch.empty(parameter.shape)))
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        own = {storage(parameter) for parameter in module.parameters()}
        kept: dict[int, int] = {}  # bytes by storage: a tensor that is kept twice takes memory once
        alive: list[Tensor] = []  # holding the tensors keeps their storages apart

        def pack(tensor: Tensor) -> Tensor:
            alive.append(tensor)
            if storage(tensor) not in own:
                kept[storage(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

        def faked(tensor: Tensor) -> Tensor:
            return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)

        arguments = replace(call, args=with_tensors(call.args, faked), kwargs=with_tensors(call.kwargs, faked))
        flops, counted = FlopCounterMode(display=False, custom_mapping=_ATTENTION), _Counted(most)
        with flops, torch.enable_grad(), hooks, counted:
            outputs = block.run(torch.empty(shape), arguments)
            forward = _flops(flops)
            outputs.square().mean().backward()
        return forward, _flops(flops), float(sum(kept.values())), counted.operations


def _flops(counter: FlopCounterMode) -> Flops:
    attention = sum(counter.get_flop_counts().get("Global", {}).get(kernel, 0) for kernel in _ATTENTION)
    return Flops(float(counter.get_total_flops() - attention), float(attention))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products: of queries and keys, and of scores and values. Several query heads may share a key head."""
    samples, heads, queries, size = query
    return int(2 * samples * heads * queries * key[-2] * (size + value[-1]))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Five products: the scores again, their gradients, and those of queries, keys and values."""
    samples, heads, queries, size = query
    return int(2 * samples * heads * queries * key[-2] * (3 * size + 2 * value[-1]))


_ATTENTION = {  # the CPU's kernels, which FlopCounterMode does not know; they are passed shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
