"""Masks set what they leave out to a positive zero; what they keep is picked a part at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reprune.math import masking
from reprune.math.masking import mask_, mask_weights_, pick, put_back_


class Picking(TorchDispatchMode):
    """Notes the shapes of masks that are used as an index."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.aten.index.Tensor:
            self.shapes += [tuple(mask.shape) for mask in args[1] if mask.dtype == torch.bool]
        return func(*args, **(kwargs or {}))


class _Elsewhere(Tensor):
    """A tensor that claims to be on a GPU, where indices take memory."""

    device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_it_is_what_filling_with_zero_gives(rows: int, columns: int, seed: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mask = torch.rand((columns, rows) if turned else (rows, columns), generator=generator) > 0.5
    mask = mask.T if turned else mask
    filled = weight.masked_fill(~mask, 0.0)
    found = mask_weights_(weight.clone(), mask)
    assert torch.equal(found, filled)
    assert not found[~mask].signbit().any()
    assert torch.equal(mask_(weight, mask), filled)


def test_gradients_in_half_precision_are_masked_too() -> None:
    gradient = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    assert mask_(gradient, torch.tensor([False, True])) is gradient
    assert gradient.tolist() == [0.0, -2.0]


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 4), (24,), (5, 5)])
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_kept_is_picked_and_put_back_a_part_at_a_time(
    shape: tuple[int, ...], turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking, "_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(0)
    values, mask = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) > 0.5
    if turned:  # gradients may be laid out so
        values, mask = (one.permute(*reversed(range(one.dim()))) for one in (values, mask))
    with Picking() as picking:
        picked = pick(values, mask)
    assert torch.equal(picked, values[mask])
    assert picking.shapes == [(7,), (7,), (7,), (values.numel() - 21,)]
    for found in (torch.zeros(values.shape), torch.zeros(values.shape).as_subclass(_Elsewhere)):
        put_back_(found, mask, picked)
        assert torch.equal(found.as_subclass(Tensor), values.masked_fill(~mask, 0.0))
