"""Attention in half precision on a CPU by plain products, which is faster than PyTorch's fused kernel.

It computes PyTorch's `scaled_dot_product_attention`, whose documentation has the formula. Scores and attention weights
(`shares`) are in half precision, sums in float32. Query heads that share a key head are rows of one product, so keys
and values are not repeated. If there are many scores, they are not kept for the gradients but computed again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from reprune.math.slices import slices

_AT_ONCE = 2**23  # scores that are computed together: 16 MiB
_NEAR = 2**20  # scores of a sample, up to which they are kept for the gradients
_ROWS = 512  # the most rows of scores computed together, one for each token and query head that shares its keys
_SHARED_KEYS = "TRANSFORMERS_SDPA_FORCE_GQA"
"""With this at 1, Transformers leaves it to the attention function to share keys; else, where there is a mask, it
repeats them for each query head. (Releases before 5.24 may not know it.)"""


@final
class HalfAttention(TorchFunctionMode):
    """While it is entered, attention under autocast on a CPU is computed this way."""

    def __enter__(self) -> Any:
        self._shared_keys = os.environ.get(_SHARED_KEYS)
        os.environ[_SHARED_KEYS] = "1"
        return super().__enter__()  # type: ignore[no-untyped-call]  # PyTorch's own

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        if self._shared_keys is None:
            os.environ.pop(_SHARED_KEYS, None)
        else:
            os.environ[_SHARED_KEYS] = self._shared_keys

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and torch.is_autocast_enabled("cpu"):
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`scaled_dot_product_attention` of (samples, heads, tokens, size); other cases go to PyTorch's function."""
    ours = _are_ours(query, key, value, enable_gqa) and _is_ours(attn_mask, query, key)
    if not ours or dropout_p or (attn_mask is not None and is_causal):
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    half = torch.get_autocast_dtype("cpu")
    mask = None if attn_mask is None else _additive(attn_mask, half)
    samples, heads, keys, size = key.shape
    scale = size**-0.5 if scale is None else scale
    shape = _Shape(samples, heads, query.shape[1] // heads, query.shape[2], keys, is_causal, scale, half)
    with torch.autocast("cpu", enabled=False):
        rows = _Attention.apply(query, key, value, mask, shape)  # type: ignore[no-untyped-call]  # PyTorch's own
    return shape.of_rows(rows)  # not in `_Attention`: in-place operations on a view from a Function fail


def _are_ours(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    return (
        all(one.device.type == "cpu" and one.dim() == 4 and len(one) == len(query) for one in (query, key, value))
        and key.shape[1:3] == value.shape[1:3]
        and (query.shape[1] % key.shape[1] == 0 if grouped else query.shape[1] == key.shape[1])
    )


def _is_ours(mask: Tensor | None, query: Tensor, key: Tensor) -> bool:
    """Whether a mask is the same for all heads and needs no gradient."""
    if mask is None:
        return True
    of_heads = mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[0] in (1, len(query))
    whole = mask.shape[-2:] == (query.shape[2], key.shape[2])
    return (mask.dim() == 2 or of_heads) and whole and not mask.requires_grad


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as finite values to add to the scores, (1 or samples, tokens, keys)."""
    least = torch.finfo(dtype).min
    if mask.dim() == 4 and mask.stride(0) == 0:  # one mask, expanded to all samples
        mask = mask[:1]
    mask = mask.reshape(-1, *mask.shape[-2:])
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, least)
    return mask.clamp(min=least).to(dtype)


@dataclass(frozen=True)
class _Part:
    """Scores that are computed together."""

    units: slice  # of the key heads of all samples
    rows: slice  # of (token, query head of the key head)
    keys: slice
    mask: Tensor | None  # added to the scores, (1 or units, rows, keys)


@dataclass(frozen=True)
class _Shape:
    samples: int
    heads: int  # of keys
    group: int  # query heads for each key head
    tokens: int
    keys: int
    causal: bool
    scale: float
    half: torch.dtype

    def rows(self, states: Tensor) -> Tensor:
        """From (samples, query heads, tokens, size) to (samples * heads, tokens * group, size), in half precision."""
        size = states.shape[-1]
        grouped = states.to(self.half).view(self.samples, self.heads, self.group, self.tokens, size).transpose(2, 3)
        return grouped.reshape(self.samples * self.heads, self.tokens * self.group, size)

    def of_rows(self, rows: Tensor) -> Tensor:
        """The reverse of `rows`, without the change of dtype."""
        grouped = rows.view(self.samples, self.heads, self.tokens, self.group, -1).transpose(1, 2)
        return grouped.reshape(self.samples, self.tokens, self.heads * self.group, -1).transpose(1, 2)

    def of_keys(self, states: Tensor) -> Tensor:
        return states.to(self.half).reshape(self.samples * self.heads, self.keys, -1)

    @property
    def near(self) -> bool:
        """Whether there are few enough scores to keep them for the gradients."""
        return self.heads * self.group * self.tokens * self.keys <= _NEAR

    @property
    def tokens_at_once(self) -> int:
        """How many tokens' scores are computed together, at most `_ROWS` / 2; keys that none sees are left out."""
        return max(1, _ROWS // max(2, self.group))

    def parts(self, mask: Tensor | None) -> Iterator[_Part]:
        units = self.samples * self.heads
        for some_tokens in slices(0, self.tokens, self.tokens_at_once):
            start, stop = some_tokens.start, some_tokens.stop
            keys = self._seen(mask, start, stop)
            added = self._mask(mask, start, stop, keys)
            rows = slice(start * self.group, stop * self.group)
            scores = (rows.stop - rows.start) * (keys.stop - keys.start)
            for some in slices(0, units, max(1, _AT_ONCE // scores)):
                of_some = added
                if added is not None and len(added) > 1:
                    of_some = added[torch.arange(some.start, some.stop) // self.heads]
                yield _Part(some, rows, keys, of_some)

    def _seen(self, mask: Tensor | None, start: int, stop: int) -> slice:
        """The keys from the first to the last that some tokens see, of any sample."""
        if self.causal or isinstance(mask, FakeTensor):  # a forecast has no mask's values: it is taken for causal
            return slice(0, min(stop, self.keys))
        if mask is None or self.tokens <= self.tokens_at_once:
            return slice(0, self.keys)
        seen = mask[:, start:stop] > torch.finfo(self.half).min  # (1 or samples, tokens, keys)
        if not seen.any(-1).all():  # a token that sees no key has shares of all
            return slice(0, self.keys)
        keys = seen.flatten(0, 1).any(0).nonzero()
        return slice(int(keys[0]), int(keys[-1]) + 1)

    def _mask(self, mask: Tensor | None, start: int, stop: int, keys: slice) -> Tensor | None:
        """The mask of some tokens as added to their scores, one row for each token and query head."""
        if self.causal:
            own = torch.full((1, stop - start, keys.stop), torch.finfo(self.half).min, dtype=self.half)
            own.triu_(start + 1)
        elif mask is not None:
            own = mask[:, start:stop, keys]
        else:
            return None
        return own[:, :, None].expand(-1, -1, self.group, -1).flatten(1, 2)


@final
class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        shape: _Shape,
    ) -> Tensor:
        rows, key_rows, values = shape.rows(query), shape.of_keys(key), shape.of_keys(value)
        outputs = rows.new_empty(*rows.shape[:2], values.shape[-1])
        kept = []
        for part in shape.parts(mask):
            shares = _shares(part, rows, key_rows, shape.scale)
            outputs[part.units, part.rows] = torch.bmm(shares, values[part.units, part.keys])
            if shape.near:
                kept.append(shares)
        ctx.save_for_backward(rows, key_rows, values, mask, *kept)
        ctx.shape, ctx.dtypes = shape, (query.dtype, key.dtype, value.dtype)
        return outputs

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        shape: _Shape = ctx.shape
        rows, key_rows, values, mask, *kept = ctx.saved_tensors
        (by_outputs,) = outer
        by_rows = torch.empty_like(rows)
        in_parts = shape.tokens > shape.tokens_at_once  # whose gradients of keys and values are summed
        sums = torch.float32 if in_parts else rows.dtype
        by_keys, by_values = (torch.zeros(one.shape, dtype=sums) for one in (key_rows, values))
        for number, part in enumerate(shape.parts(mask)):
            own, its_keys = (part.units, part.rows), (part.units, part.keys)
            shares = kept[number] if kept else _shares(part, rows, key_rows, shape.scale)
            by_values[its_keys].add_(torch.bmm(shares.mT, by_outputs[own]))
            by_shares = torch.bmm(by_outputs[own], values[its_keys].mT)
            by_scores = torch._softmax_backward_data(by_shares, shares, -1, shares.dtype)
            by_rows[own] = torch.bmm(by_scores, key_rows[its_keys])
            by_keys[its_keys].add_(torch.bmm(by_scores.mT, rows[own]))
        found = (
            shape.of_rows(by_rows.mul_(shape.scale)),
            by_keys.mul_(shape.scale).view(shape.samples, shape.heads, shape.keys, -1),
            by_values.view(shape.samples, shape.heads, shape.keys, -1),
        )
        return *(one.to(dtype) for one, dtype in zip(found, ctx.dtypes, strict=True)), None, None


def _shares(part: _Part, rows: Tensor, keys: Tensor, scale: float) -> Tensor:
    """The attention weights, (units, rows, keys)."""
    some, others = rows[part.units, part.rows], keys[part.units, part.keys].mT
    if part.mask is None:
        return torch.softmax(torch.bmm(some, others).mul_(scale), dim=-1)
    mask = part.mask.expand(len(some), *part.mask.shape[1:])
    return torch.softmax(torch.baddbmm(mask, some, others, alpha=scale), dim=-1)
