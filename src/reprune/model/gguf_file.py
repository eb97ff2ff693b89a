"""Reads what a GGUF file says about its model: settings, tensors, tokenizer. Knows nothing of the conversion."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from reprune.errors import InputError, UnsupportedModelError, out_of_memory, short

AS_LLAMA3 = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "tekken",
)
"""Pre-tokenizers with which llama.cpp begins every text with BOS unless the file says otherwise.

With them llama.cpp also keeps a piece that is a token as one token, whether or not merges lead to it.
"""

_NUMBERS = (
    *("block_count", "nextn_predict_layers", "attention.sliding_window"),
    *("rope.scaling.factor", "rope.freq_base", "rope.dimension_count"),
)
"""Settings that must be numbers, as they are computed with."""

_TABLE = "rope_"
"""Part of the names of tensors that hold factors, one for each rotary frequency."""


@final
@dataclass(frozen=True)
class GgufFile:
    """The metadata of a complete GGUF file."""

    architecture: str
    settings: Mapping[str, Any]  # of the model, by their names without the architecture's prefix
    tensors: Mapping[str, int]  # the number of elements of each tensor that the model computes with
    rope_is_scaled: bool  # whether its rotary frequencies are scaled
    implies_bos: bool  # whether texts begin with BOS although the file does not say so
    split: str | None = None  # llama.cpp's name of the pre-tokenizer


def read_gguf(gguf: Path, file: Path) -> GgufFile:
    """The metadata of `file`, which messages call `gguf`.

    Raises:
        InputError: the file is damaged or incomplete.
        UnsupportedModelError: it does not hold a language model, but an adapter or something else.
    """
    from gguf import GGUFReader

    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", gguf.name, re.IGNORECASE):
        raise InputError(f"{gguf}: is one of several parts; merge them (llama-gguf-split --merge FIRST OUT).")
    try:
        reader = GGUFReader(file)
        kind = str(reader.fields["general.type"].contents()) if "general.type" in reader.fields else "model"
        # Files of other types may name no architecture.
        architecture = str(reader.fields["general.architecture"].contents()) if kind == "model" else ""
        own = f"{architecture}."
        settings = {
            key.removeprefix(own): each.contents() for key, each in reader.fields.items() if key.startswith(own)
        }
        if wrong := [key for key in _NUMBERS if not math.isfinite(settings.get(key, 0))]:
            raise ValueError(f"{own}{wrong[0]} is not a number")
    except Exception as error:  # the reader does not check the bytes, so damage may raise anything
        if out_of_memory(error) is not None:
            raise
        raise InputError(
            f"{gguf}: is damaged, cut short or of an unknown version ({short(error)}); download it again."
        ) from None
    if kind == "adapter":
        raise UnsupportedModelError(f"{gguf}: is a LoRA adapter; merge it into its model first (llama-export-lora).")
    if kind != "model" or "block_count" not in settings:
        what = f"is of type {kind}" if kind != "model" else f"has no {architecture}.block_count"
        raise UnsupportedModelError(
            f"{gguf}: {what}, so it is not a language model; give the .gguf file of the model itself."
        )
    blocks = int(settings["block_count"]) - int(settings.get("nextn_predict_layers", 0))
    later = re.compile(r"blk\.(\d+)\.")  # blocks after the model's own predict further tokens
    tables = [tensor.data for tensor in reader.tensors if _TABLE in tensor.name]
    field = reader.fields.get("tokenizer.ggml.pre")
    split = None if field is None else str(field.contents())
    return GgufFile(
        architecture,
        settings,
        {
            tensor.name: int(tensor.n_elements)
            for tensor in reader.tensors
            if _TABLE not in tensor.name and not ((found := later.match(tensor.name)) and int(found[1]) >= blocks)
        },
        float(settings.get("rope.scaling.factor", 0.0)) not in (0.0, 1.0)
        or any((table != 1).any() for table in tables),
        "tokenizer.ggml.add_bos_token" not in reader.fields and split in AS_LLAMA3,
        split,
    )
