"""Attention on a GPU with keys repeated for the query heads that share them, where its kernels do not share keys.

Of PyTorch's kernels for CUDA, those for half precision on Ampere and newer share keys. For float32, and for all dtypes
on older GPUs, only its plain operations do, which hold the scores of all pairs of tokens; its memory-efficient kernel,
which does not hold them, takes a key head for each query head.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from reprune.model.gpus import is_ampere


def shares_keys(device: torch.device, products: torch.dtype) -> bool:
    """Whether attention with products in this dtype can share keys without holding all scores."""
    if device.type == "cpu":
        return True
    if products == torch.float32:
        return False
    return device.type != "cuda" or is_ampere(device)


@final
class RepeatedKeys(TorchFunctionMode):
    """While it is entered, attention of query heads that share keys is given these repeated."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and kwargs.get("enable_gqa"):
            return _repeated(*args, **kwargs)
        return func(*args, **kwargs)


def _repeated(query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool, **kwargs: Any) -> Tensor:
    """`scaled_dot_product_attention` of (..., heads, tokens, size), without `enable_gqa`."""
    del enable_gqa
    key, value = (
        one if (heads := one.shape[-3]) == query.shape[-3] else one.repeat_interleave(query.shape[-3] // heads, dim=-3)
        for one in (key, value)
    )
    return scaled_dot_product_attention(query, key, value, *args, **kwargs)
