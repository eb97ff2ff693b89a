"""Refuses blocks that hand on values by writing them into an object, a list or a tensor; it runs them on a few tokens.

Such values would be lost when blocks are run one by one. What blocks write to a mapping that is empty at first is
carried along, so mappings are not checked here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from types import FunctionType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.forms import Beside, is_shared
from reprune.model.nested import within
from reprune.model.without_weights import run_without_weights

_CLOSED = (
    *(Tensor, nn.Module, type, FunctionType, ModuleType, torch.dtype, torch.device, Beside),
    *(int, float, str, NoneType),
)
"""Types of what most blocks are passed and do not write into."""


@torch.enable_grad()
def refuse_written(
    model: str, blocks: nn.ModuleList, calls: Sequence[Call], states: Tensor, into: Set[str] = frozenset()
) -> None:
    """Raise `UnsupportedModelError` if a block reads what an earlier one has computed from its states and written.

    The autograd graph shows it: a block's outputs then lead back to the states of another block. Blocks that are passed
    nothing that several may write into are not run.

    Args:
        model: its name, for messages.
        blocks: on the meta device; left as they are.
        calls: what each is passed for a few tokens; what blocks write into it stays there.
        states: of the shape that enters them, in the model's layout.
        into: the names of arguments with tensors that some block is known to write into. Tensors in other arguments,
            such as masks, are taken not to be written into.
    """
    passed = Counter(number for call in calls for number in {id(one) for one in _open(tuple(_named(call).values()))})
    entered: list[Tensor] = []
    for block, (index, call) in zip(blocks, enumerate(calls), strict=True):
        watched = [
            name
            for name, value in _named(call).items()
            if name in into or any(passed[id(one)] > 1 for one in _open(value))
        ]
        if not watched:
            continue
        before, leads = [*entered], False
        entered.append(torch.zeros(states.shape, requires_grad=True))
        with suppress(Exception):  # whatever a module raises
            args, kwargs = call.without_beside().bind(entered[-1].clone(), anew=False)  # a leaf cannot be written into
            left = call.form.leaving(run_without_weights(block, args, kwargs), kwargs, states)
            leads = _leads_back(left, before)
        if leads:
            raise UnsupportedModelError(
                f"{model}: block {index} reads what an earlier block wrote into {' or '.join(map(repr, watched))}; "
                "blocks that hand values on in that way cannot be pruned one by one: have the block return them beside "
                "the hidden states, or write them to a dict that is empty before the first block."
            )


def _leads_back(tensor: Tensor, entered: Sequence[Tensor]) -> bool:
    """Whether a tensor was computed from one of these.

    It follows the graph and computes no gradients, which would need tensors that were overwritten since.
    """
    ahead: list[Any] = [tensor.grad_fn]
    seen = set()
    while ahead:
        if (node := ahead.pop()) is not None and node not in seen:
            seen.add(node)
            ahead += [one for one, _ in node.next_functions]
    return any(getattr(node, "variable", None) is one for node in seen for one in entered)


def versions(call: Call) -> Mapping[str, Sequence[int]]:
    """How often the tensors of each argument were written into, by the argument's name."""
    tensors = {name: within(value).values() for name, value in _named(call).items()}
    return {name: [one._version for one in some if isinstance(one, Tensor)] for name, some in tensors.items()}


def _named(call: Call) -> dict[str, Any]:
    return {f"argument {place}": value for place, value in enumerate(call.args)} | call.kwargs


def _open(value: Any) -> Iterator[Any]:
    """The value, or the items of a tuple, that blocks may write into; mappings that are carried along left out."""
    if isinstance(value, tuple):
        for part in value:
            yield from _open(part)
    elif not isinstance(value, _CLOSED) and not is_shared(value):
        yield value
