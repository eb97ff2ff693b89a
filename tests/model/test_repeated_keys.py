"""Attention whose kernels do not share keys is given them repeated, with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from reprune.model.block import Precision
from reprune.model.repeated_keys import RepeatedKeys, shares_keys

_GPU = torch.device("cuda", 0)


class _Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[int], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            self.calls.append(([one.shape[-3] for one in args[:3]], kwargs or {}))
        return func(*args, **(kwargs or {}))


def _heads(of_keys: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, heads, 7, 8, generator=generator).requires_grad_() for heads in (6, of_keys, of_keys)
    ]  # query, key, value


def _gradients(outputs: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outputs.square().sum(), inputs))


@pytest.mark.parametrize("of_keys", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_the_result_and_its_gradients_are_those_of_shared_keys(of_keys: int, masked: bool) -> None:
    inputs = _heads(of_keys)
    more: dict[str, Any] = {"scale": 0.3, "enable_gqa": True}
    more |= {"attn_mask": torch.ones(7, 7).tril().bool()} if masked else {"is_causal": True}
    expected = scaled_dot_product_attention(*inputs, **more)
    with _Seen() as seen, RepeatedKeys():
        found = scaled_dot_product_attention(*inputs, **more)
    [(heads, given)] = seen.calls
    assert heads == [6, 6, 6]
    assert not given.get("enable_gqa")
    torch.testing.assert_close(found, expected)
    for one, other in zip(_gradients(found, inputs), _gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_attention_that_shares_no_keys_is_left_alone() -> None:
    inputs = _heads(6)
    with _Seen() as seen, RepeatedKeys():
        scaled_dot_product_attention(*inputs, is_causal=True)
    assert seen.calls == [([6, 6, 6], {"is_causal": True})]


@contextmanager
def _generation(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        patch.setattr(torch.version, "hip", None)
        yield


def test_keys_are_shared_in_half_precision_on_ampere_and_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A V100 is 7.0, a T4 7.5, an A100 8.0, an H100 9.0."""
    for capability in ((7, 0), (7, 5), (8, 0), (9, 0)):
        with _generation(monkeypatch, capability):
            assert not shares_keys(_GPU, torch.float32)
            assert shares_keys(_GPU, torch.float16) == (capability >= (8, 0))
    assert shares_keys(torch.device("cpu"), torch.float32)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")  # of autocast
@pytest.mark.parametrize(("products", "heads"), [(torch.float32, [6, 6, 6]), (torch.bfloat16, [6, 2, 2])])
def test_models_are_run_so(products: torch.dtype, heads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        _generation(monkeypatch, (9, 0)),
        _Seen() as seen,
        torch.no_grad(),
        Precision(products).on(torch.device("cuda")),
    ):
        scaled_dot_product_attention(*_heads(2), enable_gqa=True)
    assert [of for of, _ in seen.calls] == [heads]
