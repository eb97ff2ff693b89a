"""A bare model has parameters without values; what other threads make meanwhile has values as ever."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from reprune.errors import UnsupportedModelError
from reprune.model import bare
from reprune.model.bare import build_bare
from tests import tiny


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


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"hidden_act": "oops"}, "KeyError: 'oops'"),
        ({"pad_token_id": 400}, "AssertionError: Padding_idx"),
        ({"attn_implementation": "flash_attention_2"}, "ImportError: FlashAttention2 .*be installed"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Own"}}, "SyntaxError: "),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_with_what_it_raises(
    said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    (folder / "own.py").write_text("def Own(:")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | said))
    with pytest.raises(UnsupportedModelError, match=rf"^model: Transformers cannot make the model .*\({message}"):
        build_bare(folder, trust_remote_code=True)


def test_memory_that_runs_out_is_laid_to_no_model(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(LlamaForCausalLM, "_from_config", no_memory)
    with pytest.raises(MemoryError):
        build_bare(llama, trust_remote_code=False)
