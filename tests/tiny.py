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
LICENCE = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
"""English prose that is the same wherever tests run; Python's manual, which `text` is from, differs by release."""

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
"""The architectures on which discovery is tested, by name."""

PARALLEL: Mapping[str, Callable[[], Any]] = {
    "cohere": lambda: tf.CohereConfig(**_GROUPED),
    "gptj": lambda: tf.GPTJConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=POSITIONS, rotary_dim=8
    ),
}
"""Architectures whose attention and MLP read the same tensor."""

_MOE = {**_GROUPED, "num_experts_per_tok": 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
MIXTURES: Mapping[str, Callable[[], Any]] = {
    "mixtral": lambda: tf.MixtralConfig(**_MOE, num_local_experts=4),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(
        **_MOE, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**_MOE, num_experts=6, moe_intermediate_size=16, head_dim=8),
    "olmoe": lambda: tf.OlmoeConfig(**_MOE, num_experts=4),
    "granitemoe": lambda: tf.GraniteMoeConfig(**_MOE, num_local_experts=4),
    "gpt_oss": lambda: tf.GptOssConfig(
        **_MOE, num_local_experts=4, head_dim=8, sliding_window=8, rope_parameters=_ROPE
    ),
    "deepseek_v3": lambda: tf.DeepseekV3Config(**{**_MOE, **_LATENT}),
    "llama4": lambda: tf.Llama4TextConfig(
        **{**_GROUPED, "num_experts_per_tok": 1},
        num_local_experts=4,
        intermediate_size_mlp=64,
        head_dim=8,
        interleave_moe_layer_step=1,
    ),
    "dbrx": lambda: tf.DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=3,
        max_seq_len=POSITIONS,
        vocab_size=VOCABULARY,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    ),
    "jetmoe": lambda: tf.JetMoeConfig(
        **_COMMON, num_key_value_heads=2, kv_channels=8, intermediate_size=32, num_local_experts=4
    ),
    "gemma4_moe": lambda: tf.Gemma4TextConfig(  # experts beside a dense MLP, directly in the block
        **_SLIDING,
        global_head_dim=8,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
    ),
}
"""Mixtures of experts, each of which keeps its experts in its own way, in the model or in the checkpoint."""

_SHARED_KEYS: dict[str, Any] = {
    **_SLIDING,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}


def _looking_at_images(index: int) -> dict[str, Any]:
    return {**_GROUPED, "cross_attention_layers": [index], "model_type": "mllama_text_model"}


JOINED: Mapping[str, Callable[[], Any]] = {
    "gemma3n": lambda: tf.Gemma3nTextConfig(**_SHARED_KEYS, laurel_rank=8),  # four streams, and shared keys and values
    "gemma4": lambda: tf.Gemma4TextConfig(**_SHARED_KEYS, global_head_dim=8),  # shared keys and values
    "zaya": lambda: tf.ZayaConfig(**_COMMON, moe_intermediate_size=32, head_dim=8, num_experts=4),  # routers' states
    "xlnet": lambda: tf.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=3, n_head=4, d_inner=64),  # tokens first
    "cpmant": lambda: tf.CpmAntConfig(  # more positions than tokens
        vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=64, num_hidden_layers=3
    ),
    "prophetnet": lambda: tf.ProphetNetConfig(  # streams of n-grams behind the tokens
        vocab_size=VOCABULARY,
        hidden_size=32,
        decoder_ffn_dim=64,
        num_decoder_layers=3,
        num_decoder_attention_heads=4,
        is_decoder=True,
        add_cross_attention=False,
    ),
    "deepseek_v4": lambda: tf.DeepseekV4Config(  # streams between the tokens and the hidden states
        **{**_COMMON, "num_key_value_heads": 1},
        head_dim=8,
        q_lora_rank=16,
        o_lora_rank=16,
        o_groups=2,
        partial_rotary_factor=1.0,
        index_head_dim=8,
        index_n_heads=2,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        hc_mult=2,
        sliding_window=8,
        layer_types=["heavily_compressed_attention"] * 2 + ["compressed_sparse_attention"],
        mlp_layer_types=["hash_moe"] * 2 + ["moe"],
    ),
    "glm_moe_dsa": lambda: tf.GlmMoeDsaConfig(  # the tokens that an indexer has chosen for several blocks
        **_COMMON,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        index_topk=16,
        index_head_dim=8,
        index_n_heads=2,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        indexer_types=["full", "shared", "shared"],
    ),
    "mllama": lambda: tf.MllamaConfig(text_config=_looking_at_images(1)),  # a block that text passes over
    "mllama-last": lambda: tf.MllamaConfig(text_config=_looking_at_images(2)),
}
"""Decoders whose blocks hand on more than (samples, tokens, hidden), or that pass over some of them."""


def build(name: str, seed: int = 0) -> Any:
    """A model of random weights, large enough that its blocks do something; float32, in evaluation mode."""
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config({**CONFIGS, **PARALLEL, **MIXTURES, **JOINED}[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases and norms too, so that tests see whether they are kept.
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.05))
    return model.float().eval()


@cache
def tokenizer(bos: bool = True) -> Any:
    """A byte-level BPE tokenizer, the same in every Python version, which adds BOS or not."""
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([LICENCE], trainer)
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
