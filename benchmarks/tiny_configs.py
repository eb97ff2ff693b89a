"""Makes the default configuration of any architecture tiny. Knows the names of settings, but not what they do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY, WIDTH, WIDE, BLOCKS, HEADS = 512, 64, 128, 4, 4

SIZES: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embed_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("word_embed_proj_dim", "input_embedding_size", "output_embedding_size", "ffn_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "mlp_dim", "dim_ff", "dff", "d_inner"), WIDE),
    "first_dense_intermediate_size": WIDE,
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "shared_intermediate_size", "intermediate_size_mlp"), WIDE),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), WIDTH),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "dense_intermediate_size", "expert_dim"), WIDTH),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), BLOCKS
    ),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_blocks", "num_hidden_groups", "depth"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "attention_heads", "num_encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "n_kv_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "global_head_dim", "swa_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "q_lora_rank", "kv_lora_rank", "kv_channels"), 16),
    **dict.fromkeys(("index_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    "attention_hidden_size": 16,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads", "index_n_heads"), 2),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_headdim", "mamba_head_dim"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_selected_experts", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "attention_window", "chunk_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 128),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "context_length", "index_topk"), 128),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size", "text_vocab_size"), VOCABULARY),
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "output_dim"), WIDTH),  # of outputs for images
    **dict.fromkeys(("rotary_dim", "partial_rotary_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_ssm", "mamba_intermediate_size"), WIDTH),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "lru_width", "recurrent_block_width"), WIDTH),
}
"""By name, what a configuration's numbers become if they are larger."""

_HEAD = {"head_dim": 16}
_SHARED = {"attention_hidden_size": 2 * WIDTH}
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_SHARES_KEYS = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _sections(*sizes: int) -> Mapping[str, Any]:
    """The numbers of rotary frequencies for positions in time, height and width."""
    return {"rope_parameters": {**_ROPE, "mrope_section": list(sizes)}}


_SECTIONS = _sections(2, 3, 3)
_LATENT = {"num_key_value_heads": HEADS}  # latent attention has as many key heads as heads
_TEXT_SECTIONS, _TEXT_LATENT = {"text_config": _SECTIONS}, {"text_config": _LATENT}
_THINKER_SECTIONS = {"thinker_config": _TEXT_SECTIONS}
_FEW_FILTERS = {"num_filters": 2}
_IMAGE_TOKENS = {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6}}
_RESIDUALS = {"n_layers_per_attn_res_block": 2}
_LOOP = {**_RESIDUALS, "loop_layer_index_start": 2, "loop_layer_index_end": 4}
ODD: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "sarvam_mla"), _LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu", "kimi_linear"), _LATENT),
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {"n_groups": 1},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEAD),
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {
        "axial_pos_embds_dim": [16, 48],
        "axial_pos_shape": [8, 16],
        "attn_layers": ["local", "lsh"] * 2,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
        "feed_forward_size": WIDE,
        "is_decoder": True,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "gemma3n_text": {**_SHARES_KEYS, "intermediate_size": WIDE},
    "gemma3n": {
        "text_config": {**_SHARES_KEYS, "intermediate_size": WIDE},
        "vision_config": {"architecture": "mobilenetv3_small_050"},
    },
    "fast_vlm": {"vision_config": {"architecture": "mobilenetv3_small_050", "hidden_size": WIDTH}},
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_pe_core_tiny_patch16_384",
            "model_args": {"embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "img_size": [32, 32]},
        }
    },
    "gemma4_text": _SHARES_KEYS,
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_head_dim": 32, **_SHARED},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1, "mamba_headdim": 32, **_SHARED},
    "xmod": {"default_language": "en_XX"},
    "rwkv": {"rescale_every": 2},
    "inkling2_text": _RESIDUALS,
    "inkling2": {"text_config": _RESIDUALS},
    "inkling2_loop_text": _LOOP,
    "inkling2_loop": {"text_config": _LOOP},
    "kolibri1_1": {
        "layer_types": ["sliding_attention", *["indexed_attention"] * 3],
        "index_layers": [1, 3],
        "kv_source_layers": [0, 1, 1, 3],
        "index_num_heads": 2,
        "index_topk": 8,
        "index_pool_size": 16,
        "index_compression": 2,
        "index_num_local_tokens": 4,
        "index_num_sink_tokens": 2,
        "mlp_only_layers": [0],
        "mlp_only_intermediate_size": WIDE,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "dots3_note": {
        "vision_config": {"pyramid_num_routed": [-1, -1, 4, 4], "adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    },
    "blt": {
        "encoder_config": {"hidden_size_global": WIDTH},
        "decoder_config": {"hidden_size_global": WIDTH},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), _TEXT_SECTIONS),
    **dict.fromkeys(
        ("glm4v", "glm46v", "glmga", "glm_ocr", "cosmos3_edge", "hy_v4_vl", "paddleocr_vl"), _TEXT_SECTIONS
    ),
    **dict.fromkeys(("qwen2_5_omni", "qwen3_omni_moe"), _THINKER_SECTIONS),
    **dict.fromkeys(("kimi_k25", "mistral_large4"), _TEXT_LATENT),
    **dict.fromkeys(("chameleon", "emu3"), _IMAGE_TOKENS),
    # Its linears are wide, so that the weights of its stream mixers are few in comparison.
    "glm5_next": {"text_config": {**_LATENT, "intermediate_size": 4 * WIDE}},
    "mistral4": {**_LATENT, "head_dim": 32},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "glm4v_moe": {"text_config": _sections(1, 1, 2)},
    "ernie4_5_vl_moe": {"text_config": _sections(3, 3, 2)},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE}}},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", *["sparse"] * 3], "n_routed_experts": 4, "num_experts_per_tok": 2}
    },
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": WIDTH}},
    "vibevoice_asr": {
        "semantic_tokenizer_encoder_config": _FEW_FILTERS,
        "acoustic_tokenizer_encoder_config": _FEW_FILTERS,
    },
    "vibevoice": {"semantic_model_config": _FEW_FILTERS, "audio_config": _FEW_FILTERS},
    "hunyuan_vl": {"text_config": {"head_dim": 16, **_sections(2, 2, 2, 2)}},
    "granite4_vision": {"deepstack_layer_map": [], "spatial_target_layers": [], "downsample_rate": "1/2"},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": WIDTH // 4}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [3, 2]}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}, "text_config": {"n_groups": 1}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": WIDTH, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH},
    },
}
"""What else must be given, by architecture."""


def shrunk(kind: type[PreTrainedConfig], odd: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments that make a configuration tiny; those in `odd` override shrunk ones, part by part."""
    default, odd = kind(), odd or {}
    given: dict[str, Any] = {}
    for name, size in SIZES.items():
        value = _value(default, name)
        if isinstance(value, int) and not isinstance(value, bool) and value > size and name in _settable(default):
            given[name] = size
    for name in _settable(default):
        value = _value(default, name)
        if (
            re.search(r"(token_id|token_index|(?<!\bn)_token)$", name)
            and isinstance(value, int)
            and value >= VOCABULARY
        ):
            given[name] = 3
    parts = getattr(kind, "sub_configs", None) or {}
    for name in parts:
        if isinstance(part := _value(default, name), PreTrainedConfig):
            given[name] = {**shrunk(type(part), odd.get(name)), "model_type": part.model_type}
    return {**odd, **given} | {name: value for name, value in odd.items() if name not in parts}


def _value(config: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # some refuse to give one value for what differs from block to block
        return None


def _settable(config: PreTrainedConfig) -> set[str]:
    return {name for name in vars(config) if not name.startswith("_")} | set(getattr(config, "attribute_map", {}))
