"""Blocks that read what others have written into an object, a list or a tensor are refused; others are accepted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.decoder import Decoder
from reprune.model.written import refuse_written

from .. import odd
from .conftest import embedded

Uses = Callable[[Any, Tensor], Tensor | None]
"""What a block does with its argument and its output; returns another output, or None to keep it."""


class _Block(nn.Module):
    def __init__(self, uses: Uses) -> None:
        super().__init__()
        self.uses = uses
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, side: Any) -> Tensor:
        out = x + self.linear(x)
        found = self.uses(side, out)
        return out if found is None else found


class _Other(_Block):
    """Of another class."""


class _InPlace(_Block):
    """Also writes to the states that it is passed."""

    def forward(self, x: Tensor, side: Any) -> Tensor:
        return super().forward(x.mul_(2.0), side)


def _try(uses: Uses, *sides: Any, kind: type[_Block] = _Block, others: Uses | None = None) -> None:
    """Check three blocks and, with `others`, two blocks of another class after them."""
    blocks = [kind(uses) for _ in range(3)] + [_Other(use) for use in [others] if use is not None for _ in range(2)]
    calls = [Call((None,), {"side": sides[index % len(sides)]}, 0) for index in range(len(blocks))]
    refuse_written("Model", nn.ModuleList(blocks).to("meta"), calls, torch.zeros(2, 3, 4))


def _first(side: Any, out: Tensor) -> Tensor:
    if side.first is None:
        side.first = out
    return out + side.first


def _entry(side: Any, out: Tensor) -> Tensor:
    return out + side.setdefault("first", out)


def _last(side: Any, out: Tensor) -> Tensor:
    side.append(out)
    return out + sum(side[:-1])


def _in_place(side: Any, out: Tensor) -> Tensor:
    read = out * side.memory  # its gradient needs the memory as it was
    side.memory.add_(out)
    return read


def _within(side: Any, out: Tensor) -> Tensor:
    return _last(side[1].held, out)


@pytest.mark.parametrize(
    ("uses", "side"),
    [
        (_first, SimpleNamespace(first=None)),
        (_first, SimpleNamespace(first=None, mask=torch.ones(2))),
        (_entry, {"mask": None}),
        (_last, []),
        (_in_place, SimpleNamespace(memory=torch.zeros(2, 3, 4))),
        (_within, (None, SimpleNamespace(held=[]))),
    ],
    ids=["object", "object with a tensor", "dict", "list", "in place", "deep"],
)
def test_what_a_block_reads_of_others_is_refused_by_the_name_of_its_argument(uses: Uses, side: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="Model: block 1 reads what an earlier block wrote into 'side'"):
        _try(uses, side)


def test_a_list_that_blocks_share_is_refused_though_they_also_change_their_states_in_place() -> None:
    with pytest.raises(UnsupportedModelError, match="block 1 reads"):
        _try(_last, [], kind=_InPlace)


def test_a_list_that_only_two_blocks_share_is_refused() -> None:
    both: list[Tensor] = []
    with pytest.raises(UnsupportedModelError, match="block 1 reads"):
        _try(_last, both, both, [])


def test_a_list_that_only_a_later_block_of_a_class_writes_to_is_refused() -> None:
    numbers = count()

    def uses(side: Any, out: Tensor) -> Tensor | None:
        number = next(numbers)
        if number == 1:
            side.append(out)
        return out + side[0] if number == 2 else None

    with pytest.raises(UnsupportedModelError, match="block 2 reads"):
        _try(uses, [])


def test_a_list_is_refused_though_a_block_between_writer_and_reader_leaves_it_alone() -> None:
    numbers = count()

    def uses(side: Any, out: Tensor) -> Tensor | None:
        number = next(numbers)
        if number == 0:
            side.append(out)
        return out + side[0] if number == 2 else None

    with pytest.raises(UnsupportedModelError, match="block 2 reads"):
        _try(uses, [])


def test_a_list_that_blocks_share_is_refused_beside_a_mapping_that_is_carried_along() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, shared: dict[str, Tensor], side: list[Tensor]) -> Tensor:
            if side:
                x = x + shared["first"] + side[0]
            shared["first"] = x
            side.append(x)
            return x

    shared: dict[str, Tensor] = {}
    side: list[Tensor] = []
    calls = [Call((None,), {"shared": shared, "side": side}, 0) for _ in range(2)]
    with pytest.raises(UnsupportedModelError, match="block 1 reads what an earlier block wrote into 'side'"):
        refuse_written("Model", nn.ModuleList(Both() for _ in calls), calls, torch.zeros(2, 3, 4))


def test_an_argument_without_a_name_is_told_by_its_place() -> None:
    side: list[Tensor] = []
    calls = [Call((None, side), {}, 0) for _ in range(3)]
    blocks = nn.ModuleList(_Block(_last) for _ in calls).to("meta")
    with pytest.raises(UnsupportedModelError, match="block 1 reads what an earlier block wrote into 'argument 1'"):
        refuse_written("Model", blocks, calls, torch.zeros(2, 3, 4))


def test_a_list_that_one_class_of_blocks_writes_and_another_reads_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="block 3 reads"):
        _try(lambda side, out: side.append(out), [], others=lambda side, out: out + side[0])


def _count(side: Any, out: Tensor) -> None:
    side["tokens"] += out.shape[1]


def _lazily(side: Any, out: Tensor) -> Tensor:
    if side.first is None:
        side.first = torch.arange(out.shape[1], dtype=torch.float32)[:, None]
    return out + side.first


@pytest.mark.parametrize(
    ("uses", "sides"),
    [
        (lambda side, out: side.append(out), [[]]),
        (_count, [{"tokens": 0}]),
        (_lazily, [SimpleNamespace(first=None)]),
        (_entry, [{}]),
        (_first, [SimpleNamespace(first=None) for _ in range(3)]),
        (lambda side, out: side.unknown, [SimpleNamespace()]),
    ],
    ids=["read by none", "numbers", "not of the states", "carried along", "of each block", "not run"],
)
def test_what_no_later_block_reads_or_is_not_of_the_states_is_accepted(uses: Uses, sides: list[Any]) -> None:
    _try(uses, *sides)


@pytest.mark.parametrize(("sides", "runs"), [([[1]], 3), ([[1], [2], [3]], 0), ([1], 0), ([torch.zeros(1)], 0)])
def test_blocks_are_run_where_something_is_passed_that_several_may_write_into(sides: list[Any], runs: int) -> None:
    """Blocks that share only a tensor are not run, as ordinary models pass tensors."""
    ran: list[Tensor] = []
    _try(lambda side, out: ran.append(out), *sides)
    assert len(ran) == runs


def test_a_model_whose_blocks_share_an_object_is_refused(tmp_path: Path, ids: Tensor) -> None:
    decoder = Decoder(odd.save("handed on, in an object", tmp_path))
    with pytest.raises(UnsupportedModelError, match="OddModel: block 1 reads what an earlier block wrote into"):
        embedded(decoder, ids)


def test_a_model_whose_blocks_share_a_tensor_is_refused(tmp_path: Path) -> None:
    weightless = Decoder(odd.save("handed on, in a tensor", tmp_path)).weightless
    with pytest.raises(UnsupportedModelError, match="block 1 reads what an earlier block wrote into 'side'"):
        weightless.groups(0)


def test_a_model_whose_blocks_write_something_else_than_states_to_a_shared_tensor_is_accepted(tmp_path: Path) -> None:
    weightless = Decoder(odd.save("masked in place", tmp_path)).weightless
    assert [group.names for group in weightless.groups(0)] == [("up",), ("down",)]
