"""Ranks continue with the first rank's weights and saved buffers, or fail if their masks differ."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from reprune.engine.agreement import agree_
from reprune.engine.window import PrunedBlock
from reprune.errors import NumericalError
from reprune.model.block import Block, Precision

MASK = torch.eye(4) == 0


def _blocks(seed: int, **masks: Tensor) -> list[PrunedBlock]:
    """Two blocks, each with its own weights and a saved buffer; `masks` are the second block's."""
    torch.manual_seed(seed)
    found = []
    for index in range(2):
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        module.register_buffer("gain", torch.rand(4))
        found.append(PrunedBlock(Block(index, module, torch.device("cpu"), Precision()), masks={"0": MASK}))
    found[1].masks = masks
    return found


def _agree(first: list[PrunedBlock], second: list[PrunedBlock]) -> None:
    """Play two ranks in one process: the second receives what the first has sent."""
    sent: list[Any] = []

    def give(tensors: list[Tensor]) -> None:
        sent.append([tensor.clone() for tensor in tensors])

    def take(tensors: list[Tensor]) -> None:
        for mine, given in zip(tensors, sent.pop(0), strict=True):
            mine.copy_(given)

    agree_(first, Mock(alone=False, number=0, copy_=give, tell=lambda value: sent.append(value) or value))
    agree_(second, Mock(alone=False, number=1, copy_=take, tell=lambda value: sent.pop(0)))
    assert not sent


def test_weights_and_saved_buffers_are_the_firsts() -> None:
    first, second = _blocks(0, **{"1": MASK}), _blocks(1, **{"1": MASK})
    _agree(first, second)
    for one, other in zip(first, second, strict=True):
        wanted, found = one.block.module.state_dict(), other.block.module.state_dict()
        assert "gain" in found and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("masks", [{"1": ~MASK}, {"0": MASK}, {"0": MASK, "1": MASK}, {}])
def test_masks_that_differ_in_any_block_end_the_run(masks: dict[str, Tensor]) -> None:
    with pytest.raises(NumericalError, match=r"blocks \[0, 1\]: process 1 has other masks than the first"):
        _agree(_blocks(0, **{"1": MASK}), _blocks(1, **masks))
