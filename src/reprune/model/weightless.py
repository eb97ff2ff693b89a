"""What is known of a decoder's blocks before any weight is read: their linears, which share inputs, what they cost.

A block is run on the meta device, where nothing is computed. What depends on values cannot be run there, as which
experts a token is routed to: such a block is run on a few tokens with weights of zero, which take no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import cache, partial
from typing import final

import torch
from torch import Tensor, nn

from reprune.model.beside import without_weights
from reprune.model.block import Block, Call, LinearGroup, Precision
from reprune.model.costs import BlockCosts, block_costs, costs_of_many
from reprune.model.linears import Stack, find_linears
from reprune.model.passing import to_device
from reprune.model.products import candidates, find_read, find_stacks
from reprune.model.recorder import Fill, fill_with_nothing
from reprune.model.skeleton import Skeleton
from reprune.model.written import versions

_Entering = tuple[tuple[Tensor, Call], tuple[Tensor, Call]]


@final
class Weightless:
    """The blocks of a skeleton."""

    def __init__(self, skeleton: Skeleton, precision: Precision, fill: Fill) -> None:
        """`fill` gives the weights before the blocks, without values, and refuses what cannot be had."""
        self._fill = fill
        self._skeleton = skeleton
        self._precision = precision
        self._recorded: tuple[Tensor, list[Call]] | None = None
        self._stacks: dict[Hashable, tuple[Stack, ...]] = {}  # most blocks of a model are alike
        self._groups: dict[Hashable, list[LinearGroup]] = {}
        self._called: dict[Hashable, list[LinearGroup]] = {}  # of linears that are run as modules
        self._read: dict[Hashable, set[str]] = {}

    def _sample(self) -> tuple[Tensor, list[Call]]:
        if self._recorded is None:
            self._recorded = self._skeleton.record(self._skeleton.few_ids(), self._fill)
            self._skeleton.release()
        return self._recorded

    @property
    def width(self) -> int:
        """How many numbers go along a stream for a token."""
        states = self._sample()[0]
        return states.numel() // (len(states) * states.shape[1])

    def stacks(self, index: int) -> tuple[Stack, ...]:
        """The parameters of a block that hold many matrices; whatever a block raises that cannot be run so."""
        kind = self._kind(index)
        if kind not in self._stacks:
            of_linears = not candidates(self._skeleton.blocks[index])
            self._stacks[kind] = self._of_linears(index) if of_linears else self._found_stacks(index)
        return self._stacks[kind]

    def _of_linears(self, index: int) -> tuple[Stack, ...]:
        """The same of a block of linears alone: most run all of them as modules, and are not run once more for it."""
        try:
            called = {name for group in self._called_groups(index) for name in group.names}
        except Exception:  # it looks at values: it is run with some, and what groups there are shows when it is loaded
            with suppress(Exception):
                return self._found_stacks(index)
            return ()
        linears = find_linears(self._skeleton.blocks[index])
        return () if all(linear.name in called for linear in linears) else self._found_stacks(index)

    def _found_stacks(self, index: int) -> tuple[Stack, ...]:
        real, states, call = self._near(index)
        block = Block(index, real, torch.device("cpu"), Precision())
        return tuple(find_stacks(real, lambda: _run(block, states, call), states.shape[1]))

    def groups(self, index: int) -> list[LinearGroup]:
        """The linear groups of a block, its linears without values; whatever a block raises that cannot be run so."""
        kind = self._kind(index)
        if kind not in self._groups:
            if stacks := self.stacks(index):
                module, states, call = self._near(index)
                block = Block(index, module, torch.device("cpu"), Precision(), stacks)
                self._groups[kind] = self._groups_of(block, states, call)
            else:
                self._groups[kind] = self._called_groups(index)
        return self._groups[kind]

    def _called_groups(self, index: int) -> list[LinearGroup]:
        """The linear groups of a block, of linears that are run as modules."""
        kind = self._kind(index)
        if kind not in self._called:
            states, calls = self._sample()
            meta = torch.device("meta")
            module = copy.deepcopy(self._skeleton.blocks[index]).to(meta)
            block = Block(index, module, meta, Precision())
            self._called[kind] = self._groups_of(block, states.to(meta), to_device([calls[index]], meta)[0])
        return self._called[kind]

    def _groups_of(self, block: Block, states: Tensor, call: Call) -> list[LinearGroup]:
        """The linear groups of a block, which may write into what it is passed only if no other reads that there."""
        before = versions(call)
        groups = block.groups(states, call)
        if into := {name for name, version in versions(call).items() if version != before[name]}:
            self._skeleton.refuse_written(into)
        return groups

    def read(self, index: int) -> set[str]:
        """The linears of a block whose weights it makes something of, be it as linears or otherwise.

        None of them where it cannot be run on a few tokens.
        """
        kind = self._kind(index)
        if kind not in self._read:
            module, states, call = self._near(index)
            block = Block(index, module, torch.device("cpu"), Precision())
            try:
                self._read[kind] = find_read(module, lambda: _run(block, states, call))
            except Exception:  # whatever a module raises
                self._read[kind] = set()
        return self._read[kind]

    def _kind(self, index: int) -> Hashable:
        return _kind_of(self._skeleton.blocks[index], self._sample()[1][index])

    def _near(self, index: int) -> tuple[nn.Module, Tensor, Call]:
        """A block with weights that take no memory, the states of some tokens, and what it is passed with them."""
        states, calls = self._sample()
        some = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
        return without_weights(self._skeleton.blocks[index]), some, calls[index]

    @torch.no_grad()
    def costs(self, tokens: int, device: str) -> list[BlockCosts]:
        """What each block costs on a sample of so many tokens, on a device of that type."""
        entering = cache(self._entering)
        known: dict[Hashable, BlockCosts] = {}
        costs = []
        for index, (module, ((_, call), _)) in enumerate(zip(self._skeleton.blocks, entering(tokens), strict=True)):
            kind = _kind_of(module, call)
            if kind not in known:
                known[kind] = costs_of_many(partial(self._cost, index, device, entering), tokens)
            costs.append(known[kind])
        return costs

    def _cost(
        self, index: int, device: str, entering: Callable[[int], list[_Entering]], tokens: int, most: int | None
    ) -> BlockCosts:
        try:
            stacks = self.stacks(index)
        except Exception:  # of no concern here: the survey says it
            stacks = ()
        module = self._skeleton.blocks[index]
        return block_costs(module, *entering(tokens)[index], self._precision, device, stacks, most)

    def _entering(self, tokens: int) -> list[_Entering]:
        """What enters each block with a sample of so many tokens, and with two of them; without values."""
        one, two = (
            self._skeleton.record(torch.zeros(samples, tokens, dtype=torch.int64), fill_with_nothing)
            for samples in (1, 2)
        )
        self._skeleton.release()
        return [((one[0], call), (two[0], for_two)) for call, for_two in zip(one[1], two[1], strict=True)]


@torch.no_grad()
def _run(block: Block, states: Tensor, call: Call) -> None:
    block.run(states, call)


def _kind_of(module: nn.Module, call: Call) -> Hashable:
    """What two blocks that are alike have in common."""
    shapes = tuple((name, parameter.shape) for name, parameter in module.named_parameters())
    return type(module), shapes, tuple((key, _kind(value)) for key, value in call.kwargs.items())


def _kind(value: object) -> Hashable:
    return (*value.shape, str(value.dtype)) if isinstance(value, Tensor) else type(value).__name__
