"""What a GGUF file says of its model: architecture, settings, tokenizer. Knows nothing of what is made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

from reprune.errors import InputError

_WITH_BOS = ("llama3", "llama-v3", "llama-bpe", "pixtral", "tekken")
"""Ways to split text, after which llama.cpp puts BOS first in every text unless the file says otherwise."""


@final
@dataclass(frozen=True)
class GgufFile:
    """The metadata of a whole GGUF file."""

    architecture: str
    rope_is_scaled: bool  # its rotary frequencies
    implies_bos: bool  # whether texts begin with BOS though the file does not say it


def read_gguf(gguf: Path, file: Path) -> GgufFile:
    """What is said in `file`, which the user calls `gguf`; raises `InputError` unless it is whole."""
    from gguf import GGUFReader

    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", gguf.name, re.IGNORECASE):
        raise InputError(f"{gguf}: is one of several parts; merge them (llama-gguf-split --merge FIRST OUT).")
    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
    except Exception as error:  # it walks the bytes without checks, so damage may raise anything
        raise InputError(
            f"{gguf}: is damaged, cut short or of an unknown version ({short(error)}); download it again."
        ) from None
    factor = reader.fields.get(f"{architecture}.rope.scaling.factor")
    tables = [tensor.data for tensor in reader.tensors if "rope_" in tensor.name]  # one factor a frequency
    scaled = factor is not None and float(factor.contents()) not in (0.0, 1.0)
    split = reader.fields.get("tokenizer.ggml.pre")
    return GgufFile(
        architecture,
        scaled or any((table != 1).any() for table in tables),
        "tokenizer.ggml.add_bos_token" not in reader.fields and split is not None and split.contents() in _WITH_BOS,
    )


def short(error: Exception) -> str:
    """An error of a library in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
