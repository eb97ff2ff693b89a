"""What is known of a decoder's blocks before any weight is read: their linears, linear groups and costs.

A block is run on the meta device, where nothing is computed. A block that depends on values, such as one that routes
tokens to experts, cannot run there; it is run on a few tokens with weights of zero, which take no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial, wraps
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from reprune.model.block import Block, Call, LinearGroup, Precision
from reprune.model.costs import BlockCosts, block_costs, costs_of_many
from reprune.model.linears import Stack, find_linears
from reprune.model.passing import own_of_samples, to_device
from reprune.model.products import candidates, find_read, find_stacks
from reprune.model.recorder import Fill, fill_with_nothing
from reprune.model.skeleton import Skeleton
from reprune.model.without_weights import without_weights
from reprune.model.written import versions

Found = TypeVar("Found")

_Entering = tuple[tuple[Tensor, Call], tuple[Tensor, Call]]


def _once_a_kind(find: Callable[[Any, int], Found]) -> Callable[[Any, int], Found]:
    """Cache a method's result for each kind of block: most blocks of a model are alike."""

    @wraps(find)
    def known(self: Weightless, index: int) -> Found:
        key = find.__name__, _kind_of(self._skeleton.blocks[index], self._sample[1][index])
        if key not in self._known:
            self._known[key] = find(self, index)
        found: Found = self._known[key]
        return found

    return known


@final
class Weightless:
    """The blocks of a skeleton."""

    def __init__(self, skeleton: Skeleton, precision: Precision, fill: Fill) -> None:
        """`fill` gives the weights before the blocks, without values, and raises if the checkpoint lacks one."""
        self._fill = fill
        self._skeleton = skeleton
        self._precision = precision
        self._known: dict[Hashable, Any] = {}  # by method and kind of block

    @cached_property
    def _sample(self) -> tuple[Tensor, list[Call]]:
        """The states that enter the first block for a few tokens, and what each block is passed with them."""
        recorded = self._skeleton.record(self._skeleton.few_ids(), self._fill)
        self._skeleton.release()
        return recorded

    def width(self, tokens: int) -> int:
        """How many numbers a stream of samples of so many tokens holds for each token."""
        states, form = self._sample[0], self._skeleton.forms[0]
        measured = form.measured(states).numel() // (len(states) * states.shape[1])
        return measured + len(form.whole) * self._skeleton.whole_width(tokens)

    @torch.no_grad()
    def own_bytes(self, tokens: int) -> int:
        """The bytes of what blocks are passed for one sample of `tokens` tokens and differs between samples.

        It is found by two samples of a few tokens and random weights.
        """
        ids = self._skeleton.few_ids(2)
        ids[0], ids[1] = 3, 4  # hardly padding
        _, calls = self._skeleton.record(ids, _fill_randomly)
        self._skeleton.release()
        return sum(own[0].nbytes for own in own_of_samples(calls)) // ids.shape[1] * tokens

    @_once_a_kind
    def stacks(self, index: int) -> tuple[Stack, ...]:
        """The parameters of a block that hold many matrices; a block that cannot run this way may raise anything."""
        of_linears = not candidates(self._skeleton.blocks[index])
        return self._of_linears(index) if of_linears else self._found_stacks(index)

    def _of_linears(self, index: int) -> tuple[Stack, ...]:
        """The stacks of a block of linears only: none if it calls them all, so that it need not be run again."""
        try:
            called = {name for group in self._called_groups(index) for name in group.names}
        except Exception:  # it depends on values, so it is run with some; its groups are found once it is loaded
            with suppress(Exception):
                return self._found_stacks(index)
            return ()
        linears = find_linears(self._skeleton.blocks[index])
        return () if all(linear.name in called for linear in linears) else self._found_stacks(index)

    def _found_stacks(self, index: int) -> tuple[Stack, ...]:
        block, states, call = self._near(index)
        return tuple(find_stacks(block.module, lambda: block.show(states, call), states.shape[1]))

    @_once_a_kind
    def groups(self, index: int) -> list[LinearGroup]:
        """The linear groups of a block, without values; a block that cannot run this way may raise anything."""
        stacks = self.stacks(index)
        return self._groups_of(*self._near(index, stacks)) if stacks else self._called_groups(index)

    @_once_a_kind
    def _called_groups(self, index: int) -> list[LinearGroup]:
        """The linear groups of a block among the linears whose modules are called."""
        states, calls = self._sample
        meta = torch.device("meta")
        block = Block(index, copy.deepcopy(self._skeleton.blocks[index]).to(meta), meta, Precision())
        return self._groups_of(block, states.to(meta), to_device([calls[index]], meta)[0])

    def _groups_of(self, block: Block, states: Tensor, call: Call) -> list[LinearGroup]:
        """The linear groups of a block; raises if another block reads what this one writes into a tensor.

        Only one block of each kind is run, so what another one writes is not seen.
        """
        before = versions(call)
        groups = block.groups(states, call)
        if into := {name for name, version in versions(call).items() if version != before[name]}:
            self._skeleton.refuse_written(into)
        return groups

    @_once_a_kind
    def read(self, index: int) -> set[str]:
        """The names of the linears whose weights the block uses, as linears or otherwise.

        Empty if it cannot be run on a few tokens.
        """
        block, states, call = self._near(index)
        with suppress(Exception):  # whatever a module raises
            return find_read(block.module, lambda: block.show(states, call))
        return set()

    def _near(self, index: int, stacks: Sequence[Stack] = ()) -> tuple[Block, Tensor, Call]:
        """A block whose weights take no memory, states of a few tokens, and what the block is passed with them."""
        states, calls = self._sample
        some = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
        some[..., calls[index].form.measured(some).shape[-1] :] = 0  # whole numbers, which may be places of tokens
        module = without_weights(self._skeleton.blocks[index])
        return Block(index, module, torch.device("cpu"), Precision(), stacks), some, calls[index]

    @torch.no_grad()
    def costs(self, tokens: int, device: str) -> list[BlockCosts]:
        """The costs of each block for one sample of `tokens` tokens, on a device of that type."""
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
        except Exception:  # reported by the survey instead
            stacks = ()
        module = self._skeleton.blocks[index]
        return block_costs(module, *entering(tokens)[index], self._precision, device, stacks, most)

    def _entering(self, tokens: int) -> list[_Entering]:
        """What enters each block for one sample of `tokens` tokens, and for two such samples; without values."""
        one, two = (
            self._skeleton.record(torch.zeros(samples, tokens, dtype=torch.int64), fill_with_nothing)
            for samples in (1, 2)
        )
        self._skeleton.release()
        return [((one[0], call), (two[0], for_two)) for call, for_two in zip(one[1], two[1], strict=True)]


def _fill_randomly(path: str, module: nn.Module, ids: Tensor | None) -> None:
    """Give a module random parameters; of a table only the rows that are looked up, the others take no memory."""
    fill_with_nothing(path, module, ids)
    for parameter in module.parameters(recurse=False):
        if not parameter.is_floating_point():
            continue
        if ids is None:
            parameter.normal_()
        elif parameter.dim() == 2:
            rows = ids.unique()
            parameter[rows] = torch.randn(len(rows), parameter.shape[1])


def _kind_of(module: nn.Module, call: Call) -> Hashable:
    """A key that is equal for blocks of the same kind: their class, and the shapes of parameters and arguments."""
    shapes = tuple((name, parameter.shape) for name, parameter in module.named_parameters())
    return type(module), shapes, tuple((key, _kind(value)) for key, value in call.kwargs.items())


def _kind(value: object) -> Hashable:
    return (*value.shape, str(value.dtype)) if isinstance(value, Tensor) else type(value).__name__
