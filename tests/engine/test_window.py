"""A block is written only where all its weights are finite as they are saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import reprune
from reprune.engine import fresh
from reprune.errors import NumericalError
from tests import tiny
from tests.engine.quick import prune, tensors


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e6])
def test_no_weight_that_is_not_finite_reaches_a_file(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million is finite, but not in float16, in which it would be saved."""
    whole = fresh.prune_block_

    def broken(pruned: Any, *arguments: Any) -> Any:
        found = whole(pruned, *arguments)
        if pruned.index == 1:
            with torch.no_grad():
                pruned.block.module.mlp.up_proj.weight[3, 5] = value
        return found

    monkeypatch.setattr(fresh, "prune_block_", broken)
    model = tiny.save("llama", tmp_path / "model", torch.float16)
    with pytest.raises(NumericalError, match=r"block 1: mlp\.up_proj\.weight holds NaN or infinite values"):
        prune(model, tmp_path / "out", pruner="magnitude", reconstruct="LR")
    written = tensors(tmp_path / "out")
    assert {name.split(".")[2] for name in written} == {"0"}
    assert all(tensor.isfinite().all() for tensor in written.values())
    assert reprune.status(tmp_path / "out").windows_done == 1
