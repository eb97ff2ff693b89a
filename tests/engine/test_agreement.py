"""Ranks continue with the first rank's weights and saved buffers, or fail if their masks differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from reprune.engine.agreement import agree_
from reprune.engine.window import PrunedBlock
from reprune.errors import NumericalError
from reprune.math.ranks import Alone
from reprune.model.block import Block, Precision
from tests.engine.quick import prune, tensors

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


class _OfAnother(Alone):
    """A process that is sent other weights than its own: each time a tenth more, in every weight of a block."""

    alone = False  # type: ignore[assignment]  # a property

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def copy_(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        if len(tensors) > 2:  # not a matrix and its mask
            self.sent += 1
            for tensor in tensors:
                tensor.fill_(self.sent / 10)


def test_what_a_run_writes_after_each_window_and_distillation_are_the_firsts_weights(
    llama: Path, tmp_path: Path
) -> None:
    prune(llama, tmp_path / "out", "distill=1", "distill.epochs=1", "guard=off", reconstruct="LR", ranks=_OfAnother())
    found = {name: tensor.unique().tolist() for name, tensor in tensors(tmp_path / "out").items() if "layers." in name}
    # The last block is sent once more before distillation, and again after it.
    sent = [pytest.approx([one]) for one in (0.1, 0.2, 0.5)]
    assert found == {name: sent[int(name.split(".")[2])] for name in found}
