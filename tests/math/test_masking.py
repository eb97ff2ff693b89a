"""Masks are multiplied by, and what they leave out is a positive zero."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from reprune.math.masking import mask_, mask_weights_


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_it_is_what_filling_with_zero_gives(rows: int, columns: int, seed: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mask = torch.rand(columns, rows, generator=generator).T > 0.5 if turned else torch.rand(rows, columns) > 0.5
    filled = weight.masked_fill(~mask, 0.0)
    found = mask_weights_(weight.clone(), mask)
    assert torch.equal(found, filled)
    assert not found[~mask].signbit().any()
    assert torch.equal(mask_(weight, mask), filled)


def test_gradients_in_half_precision_are_masked_too() -> None:
    gradient = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    assert mask_(gradient, torch.tensor([False, True])) is gradient
    assert gradient.tolist() == [0.0, -2.0]
