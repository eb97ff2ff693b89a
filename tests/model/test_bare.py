"""A bare model has parameters without values; what other threads make meanwhile has values as ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from reprune.model import bare
from reprune.model.bare import build_bare


def test_its_parameters_have_no_values_and_its_buffers_have(llama: Path) -> None:
    model = build_bare(llama, trust_remote_code=False)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} == {"cpu"}
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_other_threads_make_modules_with_values_meanwhile(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: list[nn.Module] = []

    class Slow(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            with ThreadPoolExecutor(1) as threads:
                theirs.append(threads.submit(nn.Linear, 2, 2).result())
            super().__init__(config)

    monkeypatch.setattr(bare, "model_class", lambda config: Slow)
    model = build_bare(llama, trust_remote_code=False)
    assert isinstance(model, Slow)
    assert {parameter.device for parameter in theirs[0].parameters()} == {torch.device("cpu")}
