"""A model with half-precision weights runs like one with the same weights in float32, and is left unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprune.model.widened import widen_after_, widened
from tests import tiny


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_runs_as_in_float32_and_is_left_as_it_was(name: str) -> None:
    model, twin = tiny.build(name).to(torch.bfloat16), tiny.build(name).to(torch.bfloat16).float()
    before = {key: (parameter, parameter.dtype) for key, parameter in model.named_parameters()}
    ids = torch.arange(8)[None]
    with torch.no_grad(), widened(model):
        assert torch.equal(model(ids).logits, twin(ids).logits)
        with pytest.raises(IndexError):
            model(torch.tensor([[10**6]]))
    after = dict(model.named_parameters())
    assert all(after[key] is parameter and parameter.dtype == dtype for key, (parameter, dtype) in before.items())


def test_linears_after_the_decoder_are_made_float32() -> None:
    model = tiny.build("llama").to(torch.bfloat16)
    widen_after_(model, model.model)
    wide = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32]
    assert wide == ["lm_head.weight"]
    assert isinstance(model.lm_head, nn.Linear)
