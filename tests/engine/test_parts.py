"""In a model of several parts, the blocks that text passes through are pruned; all else is kept bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

import reprune
from tests import tiny
from tests.engine.quick import tensors

_TOKENS = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
_RUN: dict[str, Any] = {"calibration": "manual", "samples": 4, "seqlen": 24, "epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 that also reads images, with its processor."""
    folder = tmp_path_factory.mktemp("seeing")
    tiny.tokenizer().save_pretrained(folder)
    tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=_TOKENS)
    images = tf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    tf.Gemma3Processor(images, tokenizer, "{{ bos_token }}", image_seq_length=4).save_pretrained(folder)
    image, begin, end = (tokenizer.convert_tokens_to_ids(token) for token in _TOKENS.values())
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = tf.Gemma3Config(
        text_config=tiny.CONFIGS["gemma3"]().to_dict() | {"vocab_size": len(tokenizer)},
        vision_config={**vision, "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=image,
        boi_token_index=begin,
        eoi_token_index=end,
    )
    torch.manual_seed(0)
    tf.Gemma3ForConditionalGeneration(config).eval().save_pretrained(folder)
    return folder


@torch.no_grad()
def _logits(folder: Path) -> torch.Tensor:
    """The logits of plain Transformers for an image and a question."""
    image = Image.fromarray(np.arange(56 * 56 * 3, dtype=np.uint8).reshape(56, 56, 3))
    processor = tf.AutoProcessor.from_pretrained(folder)
    given = processor(text="<start_of_image> What is it?", images=[image], return_tensors="pt")
    assert (given["input_ids"] == processor.tokenizer.image_token_id).sum() == 4
    logits: torch.Tensor = tf.AutoModelForImageTextToText.from_pretrained(folder).eval()(**given).logits
    return logits


def test_the_language_model_is_pruned_and_the_rest_is_kept(seeing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = reprune.prune(seeing, out, pruner="wanda", sparsity="2:4", **_RUN)
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


def test_what_reads_images_is_carried_along(seeing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reprune.prune(seeing, out, pruner="magnitude", sparsity="0.1", reconstruct="LR", **_RUN)
    assert {"processor_config.json", "chat_template.jinja"} <= {file.name for file in out.iterdir()}
    dense, sparse = _logits(seeing), _logits(out)
    assert torch.isfinite(sparse).all()
    assert 0 < (dense - sparse).norm() < 0.5 * dense.norm()


def test_experts_are_pruned_also_where_the_whole_is_of_another_class(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = tf.LlavaConfig(
        text_config=tiny.MIXTURES["qwen3_moe"]().to_dict(), vision_config=vision | {"image_size": 28, "patch_size": 14}
    )
    torch.manual_seed(0)
    tf.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "dense")
    tiny.tokenizer().save_pretrained(tmp_path / "dense")
    settings = ["pruner.min_tokens=4"]
    record = reprune.prune(tmp_path / "dense", tmp_path / "out", reconstruct="LR", settings=settings, **_RUN)
    assert all(sum("tokens" in matrix for matrix in block["matrices"]) == 12 for block in record["blocks"])
    assert reprune.verify(tmp_path / "out").passed
