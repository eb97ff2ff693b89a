"""What a GGUF file says of its model: settings, tensors, tokenizer. Knows nothing of what is made of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from reprune.errors import InputError, UnsupportedModelError, short

AS_LLAMA3 = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "tekken",
)
"""Ways to split text, after which llama.cpp puts BOS first in every text unless the file says otherwise.

After them a piece that is a token stays one there, too, whether merges lead to it or not.
"""

_NUMBERS = (
    *("block_count", "nextn_predict_layers", "attention.sliding_window"),
    *("rope.scaling.factor", "rope.freq_base", "rope.dimension_count"),
)
"""Settings that something is computed with here."""

_TABLE = "rope_"
"""What names of tensors hold that are factors, one a rotary frequency."""


@final
@dataclass(frozen=True)
class GgufFile:
    """The metadata of a whole GGUF file."""

    architecture: str
    settings: Mapping[str, Any]  # of the model, by their names behind the architecture's
    tensors: Mapping[str, int]  # how many numbers each has that the model computes with
    rope_is_scaled: bool  # its rotary frequencies
    implies_bos: bool  # whether texts begin with BOS though the file does not say it
    split: str | None = None  # by which name llama.cpp knows how text is split before it becomes tokens


def read_gguf(gguf: Path, file: Path) -> GgufFile:
    """What is said in `file`, which the user calls `gguf`.

    Raises:
        InputError: it is not whole.
        UnsupportedModelError: it is no language model's, but an adapter's or what else there is beside models.
    """
    from gguf import GGUFReader

    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", gguf.name, re.IGNORECASE):
        raise InputError(f"{gguf}: is one of several parts; merge them (llama-gguf-split --merge FIRST OUT).")
    try:
        reader = GGUFReader(file)
        kind = str(reader.fields["general.type"].contents()) if "general.type" in reader.fields else "model"
        # Files of other types may say nothing of an architecture.
        architecture = str(reader.fields["general.architecture"].contents()) if kind == "model" else ""
        own = f"{architecture}."
        settings = {
            key.removeprefix(own): each.contents() for key, each in reader.fields.items() if key.startswith(own)
        }
        if wrong := [key for key in _NUMBERS if not math.isfinite(settings.get(key, 0))]:
            raise ValueError(f"{own}{wrong[0]} is no number")
    except Exception as error:  # it walks the bytes without checks, so damage may raise anything
        raise InputError(
            f"{gguf}: is damaged, cut short or of an unknown version ({short(error)}); download it again."
        ) from None
    if kind == "adapter":
        raise UnsupportedModelError(f"{gguf}: is a LoRA adapter; merge it into its model first (llama-export-lora).")
    if kind != "model" or "block_count" not in settings:
        what = f"is of type {kind}" if kind != "model" else f"has no {architecture}.block_count"
        raise UnsupportedModelError(
            f"{gguf}: {what}, so it is no language model; give the .gguf file of the model itself."
        )
    blocks = int(settings["block_count"]) - int(settings.get("nextn_predict_layers", 0))
    later = re.compile(r"blk\.(\d+)\.")  # blocks behind the model's own, which predict tokens further on
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
