"""Refuses blocks that hand on something within an object or a list, by running some on a few tokens without weights.

It would be lost where blocks are run one by one. A mapping that is empty at first is no concern of this file: what
blocks write to one is carried along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import FunctionType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.beside import run_without_weights, without_beside
from reprune.model.block import Call
from reprune.model.forms import Beside, is_shared
from reprune.model.nested import within

_CLOSED = (
    *(Tensor, nn.Module, type, FunctionType, ModuleType, torch.dtype, torch.device, Beside),
    *(int, float, str, NoneType),
)
"""What most blocks are passed, and do not write into."""


@torch.enable_grad()
def refuse_written(model: str, blocks: nn.ModuleList, calls: Sequence[Call], states: Tensor) -> None:
    """Raise `UnsupportedModelError` where a block reads what an earlier one has written of its states for it.

    Gradients tell it: what a block puts out leads back to the states of another. Where nothing is passed that several
    blocks may write into, none is run; where the first of each class writes nothing, no other.

    Args:
        model: its name, for messages.
        blocks: on the meta device; left as they are.
        calls: what each is passed for a few tokens; what blocks write stays there.
        states: of the shape that enters them, as the model lays them.
    """
    passed = Counter(number for call in calls for number in {id(one) for one in _open(tuple(_named(call).values()))})
    ran: set[type[nn.Module]] = set()
    entered: list[Tensor] = []
    wrote = False
    for block, (index, call) in zip(blocks, enumerate(calls), strict=True):
        watched = {
            name: value for name, value in _named(call).items() if any(passed[id(one)] > 1 for one in _open(value))
        }
        if not watched or (type(block) in ran and not wrote):
            continue
        ran.add(type(block))
        held, before, leading = within(watched), [*entered], list[Tensor | None]()
        entered.append(torch.zeros(states.shape, requires_grad=True))
        with suppress(Exception):  # whatever a module raises
            args, kwargs = without_beside(call).bind(entered[-1].clone(), anew=False)  # a leaf cannot be written into
            left = call.form.leaving(run_without_weights(block, args, kwargs), kwargs, states)
            leading += torch.autograd.grad(left.sum(), before, allow_unused=True) if before else ()
        if any(one is not None for one in leading):
            raise UnsupportedModelError(
                f"{model}: block {index} reads what an earlier one has written into {' or '.join(map(repr, watched))}; "
                "blocks that hand on something in that way cannot be pruned one by one: have it returned beside the "
                "hidden states, or written to a dict that is empty before the first block."
            )
        now = within(watched)
        wrote |= held.keys() != now.keys() or any(now[place] is not one for place, one in held.items())


def _named(call: Call) -> dict[str, Any]:
    return {f"argument {place}": value for place, value in enumerate(call.args)} | call.kwargs


def _open(value: Any) -> Iterator[Any]:
    """What may be written into of a value, or of what a tuple holds."""
    if isinstance(value, tuple):
        for part in value:
            yield from _open(part)
    elif not isinstance(value, _CLOSED) and not is_shared(value):
        yield value
