"""Attention by plain products equals the formula, in parts of any size; other cases go to PyTorch's kernel."""

from __future__ import annotations

import inspect
import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations import sdpa_attention

from reprune.model import half_attention
from reprune.model.half_attention import HalfAttention
from tests.tiny import build

_DTYPES = (torch.bfloat16, torch.float16)


def _drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Heads in their usual memory layout: (samples, heads, tokens, size), token after token."""
    samples, heads, tokens, size = shape
    drawn = torch.randn(samples, tokens, heads, size, generator=torch.Generator().manual_seed(seed))
    return drawn.transpose(1, 2).to(dtype)


def _twin(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """The formula, head by head and token by token, in float64."""
    samples, heads, tokens, size = query.shape
    group = heads // key.shape[1]
    rows = []
    for sample in range(samples):
        for head in range(heads):
            keys, values = key[sample, head // group], value[sample, head // group]
            for token in range(tokens):
                scores = keys @ query[sample, head, token] * (scale if scale is not None else 1 / math.sqrt(size))
                allowed = torch.ones(len(keys), dtype=torch.bool)
                if causal:
                    allowed[token + 1 :] = False
                if mask is not None:
                    row = mask.expand(samples, 1, tokens, len(keys))[sample, 0, token]
                    if row.dtype == torch.bool:
                        allowed &= row
                    else:
                        scores = scores + row
                weights = scores.masked_fill(~allowed, -math.inf).softmax(0)
                rows.append(weights @ values)
    return torch.stack(rows).view(samples, heads, tokens, -1)


def _mask(kind: str, samples: int, tokens: int, keys: int) -> Tensor | None:
    if kind == "none":
        return None
    near = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens).triu(-2)
    if kind == "window":
        return near
    near[:, 0] = True  # no token is left without a key
    if kind == "bool":
        return near
    if kind == "expanded":
        return near.expand(samples, 1, tokens, keys)
    if kind == "one row":
        return near[-1].expand(tokens, keys)
    added = torch.zeros(samples if kind == "own" else 1, 1, tokens, keys).masked_fill_(
        ~near, torch.finfo(torch.float32).min
    )
    if kind == "own":
        added += torch.randn(added.shape, generator=torch.Generator().manual_seed(7))
    if kind == "padded":
        added[:, :, 1] = torch.finfo(torch.float32).min  # this token sees no key, so its shares of all are the same
    return added


_CASES = [
    # samples, query heads, key heads, tokens, keys, size, mask, causal, scale
    (2, 4, 1, 6, 6, 8, "none", True, None),
    (2, 4, 2, 6, 6, 8, "none", True, 0.3),
    (2, 3, 3, 5, 5, 4, "none", False, None),
    (2, 4, 2, 5, 5, 4, "bool", False, None),
    (2, 4, 4, 5, 5, 4, "float", False, None),
    (2, 4, 2, 5, 5, 4, "own", False, None),
    (3, 4, 2, 7, 7, 4, "own", False, 0.5),
    (2, 4, 2, 6, 6, 4, "none", True, 1.5),  # three times the default
    (2, 4, 2, 5, 5, 4, "own", False, 0.125),
    (2, 4, 2, 7, 7, 4, "window", False, None),
    (2, 2, 1, 3, 9, 4, "window", False, None),
    (2, 2, 2, 7, 7, 4, "padded", False, None),
    (2, 2, 2, 7, 7, 4, "expanded", False, None),
    (2, 2, 2, 7, 7, 4, "one row", False, None),
    (2, 2, 1, 3, 9, 4, "bool", False, None),
    (2, 2, 1, 9, 3, 4, "none", True, None),
    (1, 1, 1, 1, 1, 2, "none", True, None),
]
cases = pytest.mark.parametrize(
    ("samples", "heads", "key_heads", "tokens", "keys", "size", "kind", "causal", "scale"), _CASES
)


@cases
@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(("near", "at_once", "together"), [(2**20, 2**23, 64), (2**20, 60, 2), (0, 40, 2), (0, 1, 1)])
def test_values_and_gradients_are_those_of_the_formula(
    samples: int,
    heads: int,
    key_heads: int,
    tokens: int,
    keys: int,
    size: int,
    kind: str,
    causal: bool,
    scale: float | None,
    dtype: torch.dtype,
    near: int,
    at_once: int,
    together: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(half_attention, "_NEAR", near)
    monkeypatch.setattr(half_attention, "_AT_ONCE", at_once)
    monkeypatch.setattr(half_attention, "_ROWS", together * max(2, heads // key_heads))
    asked = _without_the_kernel(monkeypatch)
    # The queries come in float32, as after rotary embeddings.
    given = [
        _drawn(samples, heads, tokens, size, seed=1).requires_grad_(),
        _drawn(samples, key_heads, keys, size, seed=2, dtype=dtype).requires_grad_(),
        _drawn(samples, key_heads, keys, size + 1, seed=3, dtype=dtype).requires_grad_(),
    ]
    exact = [one.detach().to(dtype).double().requires_grad_() for one in given]
    mask = _mask(kind, samples, tokens, keys)
    expected = _twin(*exact, mask, causal, scale)
    with torch.autocast("cpu", dtype=dtype), HalfAttention():
        found = scaled_dot_product_attention(
            *given, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=heads != key_heads
        )
    assert asked == [1]
    assert found.dtype == dtype and found.shape == expected.shape
    outer = _drawn(*found.shape, seed=4, dtype=dtype)
    expected.backward(outer.double())
    found.backward(outer)
    for one, other in [(found, expected), *((one.grad, other.grad) for one, other in zip(given, exact, strict=True))]:
        assert one is not None and other is not None
        assert (one.double() - other).norm() <= 2**-6 * other.norm() + 1e-6
    assert [one.grad.dtype for one in given if one.grad is not None] == [one.dtype for one in given]


def _without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make attention fail if it calls the kernel; returns a list that gets a 1 for each time it is computed."""
    attention, asked = half_attention._attention, list[int]()

    def no_kernel(*_: Any, **__: Any) -> None:
        pytest.fail("the kernel was asked")

    def alone(*args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        with pytest.MonkeyPatch.context() as patch:  # only meanwhile, as attention is recognized by this function
            patch.setattr(half_attention, "scaled_dot_product_attention", no_kernel)
            return attention(*args, **kwargs)

    monkeypatch.setattr(half_attention, "_attention", alone)
    return asked


@pytest.mark.parametrize("dtype", _DTYPES)
def test_gradients_of_many_parts_are_summed_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a sum of ones ends at 256, in float16 at 2048."""
    monkeypatch.setattr(half_attention, "_ROWS", 2)
    query, key, value = (torch.zeros(1, 1, tokens, 1) for tokens in (4096, 1, 1))
    with torch.autocast("cpu", dtype=dtype), HalfAttention():
        scaled_dot_product_attention(query, key, value.requires_grad_()).backward(
            torch.ones(1, 1, 4096, 1, dtype=dtype)
        )
    assert value.grad is not None and value.grad.item() == 4096


@pytest.mark.parametrize(
    ("causal", "window", "expected"),
    [
        (True, 8, [(0, 2), (0, 4), (0, 6), (0, 8)]),
        (False, 8, [(0, 2), (0, 4), (0, 6), (0, 8)]),
        (False, 3, [(0, 2), (0, 4), (2, 6), (4, 8)]),
    ],
)
def test_keys_that_no_token_of_a_part_sees_are_left_out(
    causal: bool, window: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_attention, "_ROWS", 8)
    shape = half_attention._Shape(2, 1, 4, 8, 8, causal, 1.0, torch.bfloat16)
    seen = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril().triu(1 - window)
    mask = None if causal else half_attention._additive(seen, torch.bfloat16)
    assert [(part.keys.start, part.keys.stop) for part in shape.parts(mask)] == expected


@pytest.mark.parametrize(("near", "kept"), [(4 * 16**2, True), (4 * 16**2 - 1, False)])
def test_shares_are_kept_for_the_gradients_only_where_a_sample_has_few(
    near: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_attention, "_NEAR", near)
    query = _drawn(2, 4, 16, 8).requires_grad_()
    seen: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tuple(tensor.shape))
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
        HalfAttention(),
    ):
        scaled_dot_product_attention(query, query, query, is_causal=True)
    assert ((8, 16, 16) in seen) == kept


def test_what_is_put_out_may_be_worked_on_in_place() -> None:
    query = _drawn(2, 4, 6, 8).requires_grad_()
    gradients = []
    for in_place in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16), HalfAttention():
            outputs = scaled_dot_product_attention(query, query, query, is_causal=True)
        loss = outputs.relu_().sum() if in_place else outputs.relu().sum()
        gradients += torch.autograd.grad(loss, query)
    assert torch.equal(*gradients)


_KERNEL = scaled_dot_product_attention
_HEADS = _drawn(2, 4, 6, 8)


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        ((_HEADS, _HEADS, _HEADS), {"dropout_p": 0.5}),
        ((_HEADS, _HEADS, _HEADS), {"attn_mask": torch.randn(1, 4, 6, 6)}),
        ((_HEADS, _HEADS, _HEADS), {"attn_mask": torch.zeros(6, 6, requires_grad=True)}),
        ((_HEADS, _HEADS, _HEADS), {"attn_mask": torch.zeros(1, 6)}),
        ((_HEADS, _HEADS, _HEADS), {"attn_mask": torch.zeros(6, 1)}),
        ((_HEADS, _HEADS, _HEADS), {"attn_mask": torch.zeros(6, 6), "is_causal": True}),
        ((_HEADS[0], _HEADS[0], _HEADS[0]), {}),
        ((_HEADS[:1], _HEADS, _HEADS), {}),
    ],
    ids=[
        "dropout",
        "a mask for each head",
        "a mask that learns",
        "one row of a mask",
        "one column of a mask",
        "two masks",
        "one sample",
        "shared queries",
    ],
)
def test_what_it_has_no_way_for_is_the_kernels(arguments: tuple[Tensor, ...], more: dict[str, Any]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = _outcome(*arguments, **more)
        with HalfAttention():
            found = _outcome(*arguments, **more)
    if isinstance(expected, str):
        assert {"attn_mask", "is_causal"} <= more.keys(), f"only two masks are refused, not this: {expected}"
        assert found == expected
    else:
        assert isinstance(found, Tensor) and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        ((_HEADS, _HEADS[:, :2], _HEADS[:, :2]), {}),  # heads that share keys, without enable_gqa
        ((_HEADS, _HEADS, _HEADS[:, :2]), {}),
        ((_HEADS, _HEADS, _HEADS), {"attn_mask": torch.zeros(3, 1, 6, 6)}),
    ],
    ids=["shared keys", "fewer heads of values", "a mask of other samples"],
)
def test_what_the_kernel_refuses_is_refused(arguments: tuple[Tensor, ...], more: dict[str, Any]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = _outcome(*arguments, **more)
        with HalfAttention():
            found = _outcome(*arguments, **more)
    assert isinstance(expected, str)
    assert found == expected


def _outcome(*arguments: Tensor, **more: Any) -> Tensor | str:
    """What the kernel returns, or its error: newer ones refuse two masks."""
    torch.manual_seed(0)
    try:
        return _KERNEL(*arguments, **more)
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_keys_under_a_mask_are_not_repeated_for_each_query_head(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = half_attention._SHARED_KEYS
    if name not in inspect.getsource(sdpa_attention):
        pytest.skip("this release of Transformers always repeats them")
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    attention, heads = half_attention._attention, list[int]()

    def seen(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        heads.append(key.shape[1])
        return attention(query, key, *args, **kwargs)

    monkeypatch.setattr(half_attention, "_attention", seen)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), HalfAttention():
        build("gemma3")(torch.arange(16)[None])
    assert heads == [2, 2, 2], "a window of 8 tokens in the first and the last block"
    assert os.environ.get(name) == before


def test_without_autocast_the_kernel_is_asked() -> None:
    with HalfAttention():
        found = _KERNEL(_HEADS, _HEADS, _HEADS, is_causal=True)
    assert found.dtype == torch.float32 and torch.equal(found, _KERNEL(_HEADS, _HEADS, _HEADS, is_causal=True))
