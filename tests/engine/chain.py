"""A block of three linears in sequence, and inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor

from reprune.engine.pruning import linear_groups
from reprune.model.block import Block, Call, LinearGroup, Precision

_CALL = Call((None,), {}, 0)


class Chain(torch.nn.Module):
    """Three linears in sequence, of which the third may run twice; records each that has run to its end."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(4, 4) for _ in range(3))
        self.twice = twice
        self.ran: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "third", *["third"] * self.twice):
            x = self.get_submodule(name)(torch.tanh(x))
            self.ran.append(name)
        return x


def made(twice: bool = False) -> tuple[Chain, Block, list[tuple[Tensor, Call]], list[LinearGroup]]:
    """The module, its block, three batches of inputs for that, and its linear groups."""
    torch.manual_seed(0)
    module = Chain(twice)
    block = Block(0, module, torch.device("cpu"), Precision())
    inputs = [(torch.randn(2, 3, 4), _CALL) for _ in range(3)]
    groups = linear_groups(block, *inputs[0], ())
    module.ran.clear()
    return module, block, inputs, groups
