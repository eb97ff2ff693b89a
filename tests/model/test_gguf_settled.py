"""What Transformers ignores in a GGUF file is corrected, or the file is refused: it never becomes another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from packaging.version import Version
from tokenizers import Tokenizer, models, pre_tokenizers

from reprune.errors import UnsupportedModelError
from reprune.model.gguf_file import GgufFile
from reprune.model.gguf_settled import settle_, settle_tokenizer_
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
        ("llama", "llama", {"split": "falcon"}, "tokenizer.ggml.pre = falcon"),
        ("llama", "llama", {"split": "none that is known"}, "tokenizer.ggml.pre = none that is known"),
        ("qwen2", "qwen2", {"split": "smollm"}, "tokenizer.ggml.pre = smollm"),  # Transformers has one class for it
    ],
)
def test_what_no_configuration_has_a_place_for_is_refused(
    name: str, arch: str, said: Any, lost: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "odd.gguf", arch=arch, model=tiny.build(name), **said)
    with pytest.raises(UnsupportedModelError, match=f"odd.gguf: .* ignores {lost} in a GGUF of architecture {arch}"):
        locate_model(str(file))


@pytest.mark.parametrize(("arch", "blocks", "scale"), [("gemma2", 46, 16), ("gemma3", 62, 16), ("gemma2", 42, 256)])
def test_queries_of_gemma_27b_have_their_own_scale(arch: str, blocks: int, scale: int) -> None:
    kind = {"gemma2": tf.Gemma2Config, "gemma3": tf.Gemma3TextConfig}[arch]
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(kind(**COMMON | {"num_hidden_layers": blocks}))
    assert settle_(model, GgufFile(arch, {"block_count": blocks}, {}, False, False)) == []
    assert model.config.query_pre_attn_scalar == scale


def settled(config: Any, tensors: dict[str, int] | None = None, **said: Any) -> tuple[Any, list[str]]:
    """The configuration after a file's settings are applied, and what the model lacks of the file."""
    model = tf.AutoModelForCausalLM.from_config(config)
    names = {"base": "rope.freq_base", "width": "rope.dimension_count", "window": "attention.sliding_window"}
    settings = {"block_count": 2} | {names[key]: value for key, value in said.items()}
    return model.config, settle_(model, GgufFile(config.model_type, settings, tensors or {}, False, False))


@pytest.mark.parametrize(("base", "put"), [(10_000.001, False), (10_000.1, True), (1e6, True)])
def test_the_base_is_that_of_the_file_but_for_what_it_rounds_and_of_full_attention(base: float, put: bool) -> None:
    for config in (tf.LlamaConfig(**COMMON), tf.Gemma3TextConfig(**COMMON, rope_parameters=both(10_000.0))):
        found, lost = settled(config, base=base)
        rotary = found.rope_parameters
        assert rotary.get("full_attention", rotary)["rope_theta"] == (base if put else 10_000.0)
        assert rotary.get("sliding_attention", {"rope_theta": 5.0})["rope_theta"] == 5.0
        assert lost == []


def both(base: float) -> dict[str, Any]:
    return {
        "full_attention": {"rope_type": "default", "rope_theta": base},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
    }


@pytest.mark.parametrize(
    ("config", "width", "lost"),
    [
        (tf.Qwen3Config(**COMMON, head_dim=8), 8, False),
        (tf.Qwen3Config(**COMMON, head_dim=8), 16, True),
        (tf.Qwen3Config(**COMMON, head_dim=8), 4, True),
        pytest.param(  # the file does not say which kind of block the width is for
            tf.Gemma3TextConfig(**COMMON, head_dim=8, rope_parameters=both(10_000.0)),
            4,
            False,
            marks=pytest.mark.skipif(Version(tf.__version__) < Version("5.23"), reason="no GGUF file is read there"),
        ),
    ],
)
def test_a_width_is_that_of_the_heads_or_of_a_share_of_them(config: Any, width: int, lost: bool) -> None:
    assert settled(config, width=width)[1] == ([f"rope.dimension_count = {width}"] if lost else [])


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_heads_is_put_right_where_the_configuration_has_one(share: float) -> None:
    found, lost = settled(tf.StableLmConfig(**COMMON, rope_parameters=rope(10_000.0, share)), width=8)
    assert (found.rope_parameters["partial_rotary_factor"], lost) == (0.5, [])


@pytest.mark.parametrize(
    ("config", "window", "kept"),
    [
        (tf.LlamaConfig(**COMMON), tiny.POSITIONS - 1, False),
        (tf.LlamaConfig(**COMMON), tiny.POSITIONS, True),  # no text is longer
        (tf.LlamaConfig(**COMMON), 0, True),
        (tf.Qwen2Config(**COMMON), 16, False),  # its blocks attend to all tokens, though it could have a window
        (tf.Gemma3TextConfig(**COMMON, sliding_window=16), 16, True),
        (tf.Gemma3TextConfig(**COMMON, sliding_window=8), 16, True),
        (tf.Gemma3TextConfig(**COMMON, sliding_window=16, layer_types=["full_attention"] * 2), 16, True),
    ],
)
def test_a_window_is_put_right_where_blocks_have_one(config: Any, window: int, kept: bool) -> None:
    found, lost = settled(config, window=window)
    assert lost == ([] if kept else [f"attention.sliding_window = {window}"])
    assert getattr(found, "sliding_window", None) == (16 if config.model_type == "gemma3_text" else None)


def test_a_head_that_is_the_embedding_counts_once() -> None:
    for name, lost in (("llama", ["320 numbers of its tensors"]), ("llama-tied-bias", [])):
        config = tiny.CONFIGS[name]()
        held = sum(one.numel() for one in tiny.build(name).parameters())
        assert settled(config, {"blk.0.all": held})[1] == []
        assert settled(config, {"blk.0.all": held, "output.weight": 320})[1] == lost
        assert settled(config, {"blk.0.all": held + 1})[1] == ["1 numbers of its tensors"]


@pytest.mark.parametrize(
    ("split", "known", "tokens"),
    [
        (None, False, "12 a b"),
        ("gpt-2", False, "12 a b"),
        ("smollm", False, "1 2 a b"),
        ("qwen2", True, "12 a b"),
        ("llama-bpe", True, "12 ab"),
        ("tekken", True, "12 ab"),
    ],
)
def test_text_is_cut_as_the_file_says(split: str | None, known: bool, tokens: str) -> None:
    """No merges lead to the token `ab`. A pre-tokenizer that Transformers knows is not GPT-2's."""
    raw = Tokenizer(models.BPE(dict(zip(("1", "2", "a", "b", "12", "ab"), range(6), strict=True)), [("1", "2")]))
    raw.pre_tokenizer = pre_tokenizers.Digits() if known else pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=raw)
    assert settle_tokenizer_(tokenizer, GgufFile("llama", {}, {}, False, False, split)) == []
    assert " ".join(tokenizer.tokenize("12ab")) == tokens


@pytest.mark.parametrize(
    ("config", "split", "numbers"),
    [
        (tf.Starcoder2Config(**COMMON, rope_parameters=rope(10_000.0, 1.0)), "starcoder", "each"),
        (tf.Starcoder2Config(**COMMON, rope_parameters=rope(10_000.0, 1.0)), "gpt-2", "whole"),
        (tf.Qwen2Config(**COMMON), "qwen2", "each"),
        (tf.Qwen2Config(**COMMON), None, "each"),  # older files name none, for the same models
    ],
)
def test_a_class_with_a_cut_of_its_own_is_not_over_what_the_file_says(
    config: Any, split: str | None, numbers: str, tmp_path: Path
) -> None:
    model = tf.AutoModelForCausalLM.from_config(config)
    file = write_gguf(tmp_path / "model.gguf", arch=config.model_type, model=model, split=split)
    cut = tf.AutoTokenizer.from_pretrained(locate_model(str(file))).backend_tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in cut.pre_tokenize_str("In 1984")]
    assert pieces == (["In", "Ġ", "1", "9", "8", "4"] if numbers == "each" else ["In", "Ġ1984"])


def test_what_was_put_right_of_a_tokenizer_is_saved(tmp_path: Path) -> None:
    digits, whole = (
        tf.AutoTokenizer.from_pretrained(locate_model(str(write_gguf(tmp_path / f"{split}.gguf", split=split))))
        for split in ("smollm", "llama-bpe")
    )
    assert "Digits" in str(digits.backend_tokenizer.pre_tokenizer)
    assert whole.backend_tokenizer.model.ignore_merges
