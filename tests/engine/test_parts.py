"""Of a model of several parts the blocks that text passes through are pruned, and all else is kept bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

import reprune
from tests import tiny
from tests.engine.quick import tensors


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 that reads images too."""
    folder = tmp_path_factory.mktemp("seeing")
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = tf.Gemma3Config(
        text_config=tiny.CONFIGS["gemma3"]().to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )
    torch.manual_seed(0)
    tf.Gemma3ForConditionalGeneration(config).eval().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_the_language_model_is_pruned_and_the_rest_is_kept(seeing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = reprune.prune(
        seeing, out, calibration="manual", samples=4, seqlen=24, epochs=1, device="cpu", pruner="wanda", sparsity="2:4"
    )
    assert len(record["blocks"]) == 3
    dense, sparse = tensors(seeing), tensors(out)
    assert dense.keys() == sparse.keys()
    changed = {name for name in dense if not torch.equal(dense[name], sparse[name])}
    assert changed
    assert all("language_model" in name and ".layers." in name for name in changed)
    assert sum("vision_tower" in name for name in dense) > 20
    model, info = tf.AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.arange(8, 40).view(1, -1)).logits).all()
    assert reprune.verify(out).passed
    assert reprune.evaluate(out, "manual", seqlen=24, max_windows=4).perplexity > 1
