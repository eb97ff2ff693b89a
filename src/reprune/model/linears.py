"""The linears of a block, each as a matrix (rows = outputs, columns = inputs), however it is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Stack:
    """A parameter that holds matrices of one shape one after the other: those of all experts, or of all heads.

    It may be the weight of a linear: a single matrix that is multiplied by directly, while the linear's module is never
    called, or several, if the module multiplies each part of its inputs by a part of the weight.
    """

    parameter: str  # its name within the block
    count: int
    shape: tuple[int, int]  # (rows, columns) of each
    strides: tuple[int, int]  # in elements, of rows and columns
    shares: str  # the first of the stacks that read the same inputs; may be this one
    per_token: float  # how many of the matrices a token passes through

    @property
    def routed(self) -> bool:
        """Whether a token passes through only some of the matrices."""
        return self.per_token < self.count


@final
@dataclass(frozen=True)
class Linear:
    """One linear of a block: `nn.Linear`, GPT-2's `Conv1D`, which stores the transpose, or one matrix of a stack."""

    name: str  # within the block, such as self_attn.q_proj, or mlp.experts.down_proj.3 in a stack
    parameter: nn.Parameter
    shape: tuple[int, int]  # (rows, columns)
    strides: tuple[int, int]  # of its elements in the parameter
    offset: int = 0
    module: nn.Module | None = None  # the module that is called with its inputs; None in a stack
    stack: Stack | None = None

    @staticmethod
    def of(name: str, module: nn.Module) -> Linear:
        """The whole weight of an `nn.Linear` or `Conv1D`."""
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        first, second = weight.shape
        if isinstance(module, Conv1D):
            return Linear(name, weight, (second, first), (1, second), module=module)
        return Linear(name, weight, (first, second), (second, 1), module=module)

    @property
    def number(self) -> int:
        """Its index in its stack; 0 outside of one."""
        return self.offset // math.prod(self.shape)

    @property
    def share(self) -> float:
        """The fraction of tokens that pass through it if all experts are chosen equally often."""
        return 1.0 if self.stack is None else self.stack.per_token / self.stack.count

    def matrix(self) -> Tensor:
        """The weights (rows, columns), a view that shares memory with the parameter."""
        return self.of_layout(self.parameter.detach())

    @property
    def is_whole(self) -> bool:
        """Whether the parameter is exactly this matrix, in this layout."""
        return self.parameter.shape == self.shape and self.strides == (self.shape[1], 1) and not self.offset

    def of_layout(self, tensor: Tensor) -> Tensor:
        """The part of a contiguous tensor of the parameter's shape that is this matrix's, (rows, columns)."""
        return tensor.as_strided(self.shape, self.strides, tensor.storage_offset() + self.offset)

    @torch.no_grad()
    def set_(self, matrix: Tensor) -> None:
        """Overwrite the weights with a matrix (rows, columns)."""
        self.matrix().copy_(matrix)


def find_linears(block: nn.Module, stacks: Sequence[Stack] = ()) -> list[Linear]:
    """All linears in a block, in the order of its modules, then those of its stacks, matrix by matrix."""
    stacked = {stack.parameter for stack in stacks}
    plain = [
        Linear.of(name, module)
        for name, module in block.named_modules()
        if is_linear(module) and f"{name}.weight" not in stacked
    ]
    return plain + [linear for stack in stacks for linear in _of_stack(block, stack)]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an `nn.Linear` or `Conv1D` whose weight is a parameter."""
    return isinstance(module, nn.Linear | Conv1D) and isinstance(module.weight, nn.Parameter)


def _of_stack(block: nn.Module, stack: Stack) -> list[Linear]:
    parameter = block.get_parameter(stack.parameter)
    size = math.prod(stack.shape)
    name = stack.parameter.removesuffix(".weight")
    if stack.count == 1:
        return [Linear(name, parameter, stack.shape, stack.strides, stack=stack)]
    if name == stack.parameter or not is_linear(block.get_submodule(name)):
        name = stack.parameter
    return [
        Linear(f"{name}.{number}", parameter, stack.shape, stack.strides, number * size, stack=stack)
        for number in range(stack.count)
    ]


def other_matrices(block: nn.Module, stacks: Sequence[Stack] = ()) -> dict[str, tuple[int, ...]]:
    """By name, the shapes of parameters of two or more dimensions that are not a linear's weight, so not pruned."""
    weights = {id(linear.parameter) for linear in find_linears(block, stacks)}
    return {
        name: tuple(parameter.shape)
        for name, parameter in block.named_parameters()
        if parameter.dim() >= 2 and id(parameter) not in weights
    }


def find_routers(block: nn.Module, stacks: Sequence[Stack]) -> set[str]:
    """The names of linears that choose or weigh experts: beside experts, with an output for each, or only one.

    There may be one more output, to choose no expert. Experts are stacks, or lists of modules that each hold linears. A
    linear whose outputs another one beside it reads is not a router but a layer, such as of a shared expert. If a
    module is a chain of linears that ends in a router, all of them belong to the router.
    """
    beside: dict[str, set[int]] = {}  # by the path of a module that holds experts: how many it holds
    for stack in stacks:
        if stack.routed:
            # For mlp.experts.down_proj the router is mlp.gate; experts may lie deeper (ffn.experts.mlp.w1), or in the
            # block itself (experts.down_proj), whose path is empty.
            *parts, _ = stack.parameter.split(".")
            for length in range(1, len(parts)) or [0]:
                beside.setdefault(".".join(parts[:length]), set()).add(stack.count)
    for path, module in block.named_modules():
        experts = module if isinstance(module, nn.ModuleList) and len(module) > 1 else ()
        if "." in path and experts and all(any(map(is_linear, expert.modules())) for expert in experts):
            beside.setdefault(path.rpartition(".")[0], set()).add(len(experts))
    shapes = {linear.name: linear.shape for linear in find_linears(block)}
    found: dict[str, str] = {}  # by name: the path of the module around it that lies directly in the one with experts
    for holder in sorted(beside, key=len):
        rows_of_routers = {1, *beside[holder], *(one + 1 for one in beside[holder])}
        around = f"{holder}." if holder else ""
        for name, (rows, _) in shapes.items():
            if name.startswith(around) and rows in rows_of_routers:
                found[name] = around + name.removeprefix(around).split(".")[0]
    read = {(name.rpartition(".")[0], columns) for name, (_, columns) in shapes.items() if name not in found}
    routers: set[str] = set()
    for name, path in found.items():
        if (name.rpartition(".")[0], shapes[name][0]) not in read:
            chain = [other for other in shapes if f"{other}.".startswith(f"{path}.")]
            fits = all(shapes[one][0] == shapes[after][1] for one, after in pairwise(chain))
            routers |= {name, *(chain if fits and chain[-1] == name else ())}
    return routers
