"""Refuses blocks that hand on something within an object, a list or a tensor, by running them on a few tokens.

It would be lost where blocks are run one by one. A mapping that is empty at first is no concern of this file: what
blocks write to one is carried along.
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
"""What most blocks are passed, and do not write into."""


@torch.enable_grad()
def refuse_written(
    model: str, blocks: nn.ModuleList, calls: Sequence[Call], states: Tensor, into: Set[str] = frozenset()
) -> None:
    """Raise `UnsupportedModelError` where a block reads what an earlier one has written of its states for it.

    The ways of gradients tell it: what a block puts out leads back to the states of another. Blocks that are passed
    nothing that several may write into are not run.

    Args:
        model: its name, for messages.
        blocks: on the meta device; left as they are.
        calls: what each is passed for a few tokens; what blocks write stays there.
        states: of the shape that enters them, as the model lays them.
        into: the names of arguments whose tensors some block is known to write into. Others are taken for tensors that
            none does, as masks are.
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
                f"{model}: block {index} reads what an earlier one has written into {' or '.join(map(repr, watched))}; "
                "blocks that hand on something in that way cannot be pruned one by one: have it returned beside the "
                "hidden states, or written to a dict that is empty before the first block."
            )


def _leads_back(tensor: Tensor, entered: Sequence[Tensor]) -> bool:
    """Whether it was computed from one of these; no gradient is, which would want what was written over since."""
    ahead: list[Any] = [tensor.grad_fn]
    seen = set()
    while ahead:
        if (node := ahead.pop()) is not None and node not in seen:
            seen.add(node)
            ahead += [one for one, _ in node.next_functions]
    return any(getattr(node, "variable", None) is one for node in seen for one in entered)


def versions(call: Call) -> Mapping[str, Sequence[int]]:
    """How often the tensors of each argument have been written into, by its name."""
    tensors = {name: within(value).values() for name, value in _named(call).items()}
    return {name: [one._version for one in some if isinstance(one, Tensor)] for name, some in tensors.items()}


def _named(call: Call) -> dict[str, Any]:
    return {f"argument {place}": value for place, value in enumerate(call.args)} | call.kwargs


def _open(value: Any) -> Iterator[Any]:
    """What may be written into of a value, or of what a tuple holds."""
    if isinstance(value, tuple):
        for part in value:
            yield from _open(part)
    elif not isinstance(value, _CLOSED) and not is_shared(value):
        yield value
