"""The linears of a block, each seen as a matrix (rows = outputs, columns = inputs) however it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@final
@dataclass(frozen=True)
class Linear:
    """One linear of a block: `nn.Linear`, or GPT-2's `Conv1D`, which stores the transpose."""

    name: str  # within the block, such as self_attn.q_proj
    module: nn.Module

    @property
    def transposed(self) -> bool:
        return isinstance(self.module, Conv1D)

    @property
    def parameter(self) -> nn.Parameter:
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        first, second = self.parameter.shape
        return (second, first) if self.transposed else (first, second)

    def matrix(self) -> Tensor:
        """The weights (rows, columns), a view that shares memory with the parameter."""
        return self.stored(self.parameter.detach())

    def stored(self, matrix: Tensor) -> Tensor:
        """From (rows, columns) to the layout of the parameter, or back: the two are each other's transpose."""
        return matrix.T if self.transposed else matrix

    @torch.no_grad()
    def set_(self, matrix: Tensor) -> None:
        """Overwrite the weights with a matrix (rows, columns)."""
        self.parameter.copy_(self.stored(matrix))


def find_linears(block: nn.Module) -> list[Linear]:
    """All linears in a block, in the order of its modules."""
    return [Linear(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def other_matrices(block: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameters of two or more dimensions that no linear holds as its weight: what cannot be pruned, by name."""
    weights = {id(linear.parameter) for linear in find_linears(block)}
    return {
        name: tuple(parameter.shape)
        for name, parameter in block.named_parameters()
        if parameter.dim() >= 2 and id(parameter) not in weights
    }
