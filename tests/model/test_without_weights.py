"""Weights that stand in for a block's take no memory, however large they are."""

from __future__ import annotations

import os

import torch
from torch import nn

from reprune.model.without_weights import without_weights


def test_more_weights_than_memory_take_none() -> None:
    numbers = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # each of 4 bytes
    module = nn.Module()
    module.experts = nn.Parameter(torch.empty(2, 2, numbers // 4, device="meta"))
    experts = without_weights(module).experts
    assert experts.shape == module.experts.shape
    assert experts.is_contiguous()
    assert not experts[:, :, -8:].any()
