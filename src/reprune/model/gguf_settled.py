"""Checks what Transformers made of a GGUF file against the file, as its reader silently ignores parts of it.

What the configuration or the tokenizer has a plain setting for is corrected there; the rest is reported as missing from
the model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from reprune.model.gguf_file import AS_LLAMA3, GgufFile

_BLOCKS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""The numbers of blocks by which llama.cpp recognizes the 27B models, as their files do not give their query scale."""


def settle_(model: Any, said: GgufFile) -> list[str]:
    """Correct a model's configuration from its file; returns what the model lacks of the file, in words."""
    config = model.config
    if said.settings.get("block_count") == _BLOCKS_OF_27B.get(said.architecture, 0):
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    lost = []
    if (numbers := _numbers(said, getattr(config, "tie_word_embeddings", False)) - _held(model)) > 0:
        lost.append(f"{numbers} numbers of its tensors")
    for key, put_ in _PUT.items():
        value = said.settings.get(key)
        if value is not None and not put_(config, value):
            lost.append(f"{key} = {value}")
    return lost


def settle_tokenizer_(tokenizer: Any, said: GgufFile) -> list[str]:
    """Make a tokenizer split text as its file says; returns the settings of the file that are not known here."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if said.split in AS_LLAMA3:
        backend.model.ignore_merges = True
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):  # GPT-2's, the reader's default
        return []
    if said.split in _BY_DIGIT:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
        return []
    return [] if said.split is None or said.split in _AS_GPT2 else [f"tokenizer.ggml.pre = {said.split}"]


def save_tokenizer(tokenizer: Any, said: GgufFile, folder: Path) -> bool:
    """Write a tokenizer; returns whether the one loaded from there splits text the same way, if the file gives one.

    Some classes split text their own way, whatever tokenizer.json says. StarCoder 2's is replaced in the folder's
    settings; Qwen2's cannot be, as Transformers uses it for Qwen2 models regardless.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    if said.split is None or _cut(AutoTokenizer.from_pretrained(folder)) == _cut(tokenizer):
        return True
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "TokenizersBackend"}
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return _cut(AutoTokenizer.from_pretrained(folder)) == _cut(tokenizer)


def _cut(tokenizer: Any) -> tuple[str, bool]:
    backend = tokenizer.backend_tokenizer
    return str(backend.pre_tokenizer), getattr(backend.model, "ignore_merges", False)


def _numbers(said: GgufFile, tied: bool) -> int:
    """The number of elements in the file; if the embedding is also the head, its second copy does not count."""
    return sum(count for name, count in said.tensors.items() if not (tied and name == "output.weight"))


def _held(model: Any) -> int:
    return sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())


def _put_base_(config: Any, base: float) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)  # some models have parameters for each kind of block
    if not math.isclose(rope.get("rope_theta", base), base, rel_tol=1e-6):
        rope["rope_theta"] = base
    return True


def _put_width_(config: Any, width: int) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" not in rope:  # no rotary embedding, or parameters for each kind of block
        return True
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if "partial_rotary_factor" in rope and int(head * rope["partial_rotary_factor"]) != width:
        rope["partial_rotary_factor"] = width / head
    return int(head * rope.get("partial_rotary_factor", 1.0)) == width


def _put_window_(config: Any, window: int) -> bool:
    if window == 0 or window >= config.max_position_embeddings or window == getattr(config, "sliding_window", None):
        return True
    if not hasattr(config, "sliding_window") or "sliding_attention" not in (
        getattr(config, "layer_types", None) or ["sliding_attention"]
    ):
        return False
    config.sliding_window = window
    return True


_PUT = {
    "rope.freq_base": _put_base_,
    "rope.dimension_count": _put_width_,
    "attention.sliding_window": _put_window_,
}
"""For a setting's name in the file, the function that puts it into a configuration and returns whether it could."""

_AS_GPT2 = ("gpt-2", "a.x-4.0", "gigachat", "granite-docling", "mellum", "trillion")
"""Pre-tokenizers that are GPT-2's in llama.cpp."""

_BY_DIGIT = ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2")
"""Pre-tokenizers that are GPT-2's after splitting off each digit."""
