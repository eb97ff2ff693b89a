"""Tiny models of real architectures with random weights, and a tokenizer for them: all that tests prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 320
POSITIONS = 128

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 64}
_SLIDING = {**_GROUPED, "head_dim": 8, "sliding_window": 8}

CONFIGS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_GROUPED),
    "llama-tied-bias": lambda: tf.LlamaConfig(**_GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "opt": lambda: tf.OPTConfig(**_COMMON, ffn_dim=64, word_embed_proj_dim=16),
    "qwen2": lambda: tf.Qwen2Config(**_GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**_GROUPED, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**_SLIDING, query_pre_attn_scalar=8),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_SLIDING,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": lambda: tf.MistralConfig(**_SLIDING),
    "phi3": lambda: tf.Phi3Config(**_GROUPED),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_COMMON, intermediate_size=64),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=POSITIONS, bos_token_id=1, eos_token_id=2
    ),
}
"""The architectures on which discovery is proven, by name."""


def build(name: str, seed: int = 0) -> Any:
    """A model of random weights, large enough that its blocks do something; float32, in evaluation mode."""
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases and norms too, so that a test sees whether they are carried along.
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.05))
    return model.float().eval()


@cache
def tokenizer(bos: bool = True) -> Any:
    """A byte-level BPE tokenizer trained on the Python manual; it adds BOS to what it encodes, or not."""
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([topics[key] for key in sorted(topics)[:10]], trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=POSITIONS
    )


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, bos: bool = True, **options: Any) -> Path:
    """Write a tiny model and its tokenizer as an ordinary model folder."""
    model = build(name).to(dtype)
    model.save_pretrained(folder, **options)
    tokenizer(bos).save_pretrained(folder)
    return folder


def text(characters: int = 60_000) -> str:
    """Real English prose: the start of the Python manual's topics."""
    return "\n\n".join(topics[key] for key in sorted(topics))[:characters]
