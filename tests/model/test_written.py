"""Blocks that read what others have written into an object or a list are refused; what none reads is no matter."""

from __future__ import annotations

from collections.abc import Callable
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
"""What a block does with what it is passed and what it has put out; gives what it puts out in truth, where other."""


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


def _try(uses: Uses, *sides: Any, others: Uses | None = None) -> None:
    """Look for what is written by three blocks, or by those of another class after them too."""
    blocks = [_Block(uses) for _ in range(3)] + [_Other(use) for use in [others] if use is not None for _ in range(2)]
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


def _within(side: Any, out: Tensor) -> Tensor:
    return _last(side[1].held, out)


@pytest.mark.parametrize(
    ("uses", "side"),
    [
        (_first, SimpleNamespace(first=None)),
        (_first, SimpleNamespace(first=None, mask=torch.ones(2))),
        (_entry, {"mask": None}),
        (_last, []),
        (_within, (None, SimpleNamespace(held=[]))),
    ],
    ids=["object", "object with a tensor", "dict", "list", "deep"],
)
def test_what_a_block_reads_of_others_is_refused_by_the_name_of_its_argument(uses: Uses, side: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="Model: block 1 reads what an earlier one has written into 'side'"):
        _try(uses, side)


def test_so_it_is_where_blocks_of_one_class_write_and_those_of_another_read() -> None:
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
def test_what_is_written_otherwise_is_let_pass(uses: Uses, sides: list[Any]) -> None:
    _try(uses, *sides)


@pytest.mark.parametrize(("written", "count"), [(False, 1), (True, 3)])
def test_other_blocks_of_a_class_are_run_where_the_first_writes(written: bool, count: int) -> None:
    ran: list[Tensor] = []

    def uses(side: Any, out: Tensor) -> None:
        ran.append(out)
        if written:
            side.append(len(ran))

    _try(uses, [1])
    assert len(ran) == count


def test_a_model_of_such_blocks_is_refused(tmp_path: Path, ids: Tensor) -> None:
    decoder = Decoder(odd.save("handed on, in an object", tmp_path))
    with pytest.raises(UnsupportedModelError, match="OddModel: block 1 reads what an earlier one has written into"):
        embedded(decoder, ids)
