"""What Transformers passes over in a GGUF file is put right, or the file is refused: it never becomes another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from reprune.errors import UnsupportedModelError
from reprune.model.gguf_file import GgufFile
from reprune.model.gguf_settled import settle_
from reprune.model.locate import locate_model
from tests import tiny
from tests.doors.demo.test_model import write_gguf

COMMON: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": tiny.POSITIONS,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))


def rope(base: float, share: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (tf.Phi3Config(**COMMON, sliding_window=16), {"window": 16, "width": 16}),
        (tf.Phi3Config(**COMMON, rope_parameters=rope(10_000.0, 0.75)), {"window": 0, "width": 12}),
        (tf.StableLmConfig(**COMMON, rope_parameters=rope(5_000.0, 0.5)), {"base": 5_000.0, "width": 8}),
        (tf.Starcoder2Config(**COMMON, rope_parameters=rope(999_999.4375, 1.0)), {"base": 999_999.4375}),
    ],
)
def test_rotation_and_window_are_what_the_file_says(config: Any, said: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter)).copy_(parameter.bfloat16())
        file = write_gguf(tmp_path / "model.gguf", arch=config.model_type, model=model, **said)
        found = tf.AutoModelForCausalLM.from_pretrained(locate_model(str(file)), dtype=torch.float32)
        ids = torch.arange(3, 63).view(1, -1)
        assert torch.equal(found(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("name", "arch", "said", "lost"),
    [
        ("llama-tied-bias", "llama", {}, "768 numbers of its tensors"),
        ("llama", "llama", {"window": 16}, "attention.sliding_window = 16"),
        ("qwen2", "qwen2", {"width": 4}, "rope.dimension_count = 4"),
    ],
)
def test_what_no_configuration_has_a_place_for_is_refused(
    name: str, arch: str, said: Any, lost: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "odd.gguf", arch=arch, model=tiny.build(name), **said)
    with pytest.raises(
        UnsupportedModelError, match=f"odd.gguf: .* passes over {lost} in a GGUF of architecture {arch}"
    ):
        locate_model(str(file))


@pytest.mark.parametrize(("blocks", "scale"), [(46, 16), (42, 256)])
def test_queries_of_gemma_2_27b_have_their_own_scale(blocks: int, scale: int) -> None:
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(tf.Gemma2Config(**COMMON | {"num_hidden_layers": blocks}))
    assert settle_(model, GgufFile("gemma2", {"block_count": blocks}, {}, False, False)) == []
    assert model.config.query_pre_attn_scalar == scale
