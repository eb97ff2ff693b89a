"""A NaN or an infinity anywhere in a tensor is found, whatever the dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprune.math.finite import all_finite


@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    numbers=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -3e38, 3e38, float("nan"), float("inf"), -float("inf")]), max_size=3
    ),
    data=st.data(),
)
def test_it_says_what_isfinite_says(shape: list[int], numbers: list[float], data: st.DataObject) -> None:
    X = torch.zeros(shape)
    for number in numbers if X.numel() else ():
        X.view(-1)[data.draw(st.integers(0, X.numel() - 1))] = number
    assert all_finite(X) == bool(torch.isfinite(X).all())
    assert all_finite(X.T if X.dim() == 2 else X) == bool(torch.isfinite(X).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_in_every_dtype_that_weights_have(dtype: torch.dtype) -> None:
    X = torch.ones(3, 5, dtype=dtype)
    assert all_finite(X)
    for number in ("nan", "inf", "-inf"):
        X[1, 2] = float(number)
        assert not all_finite(X)
