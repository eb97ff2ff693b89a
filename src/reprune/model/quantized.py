"""What can be done with quantized weights that a model has no other of. Knows config.json alone."""

from __future__ import annotations

import inspect
from contextlib import suppress
from pathlib import Path

from reprune.model.wellformed import read_json


def dequantizing(folder: Path) -> str:
    """How Transformers makes plain weights of a folder's quantized ones, to end a message; empty where it does not."""
    with suppress(Exception):  # whatever is wrong in the configuration: it only helps to say more
        config = read_json((folder / "config.json").read_text(encoding="utf-8"))
        quantized = config.get("quantization_config") or config["text_config"]["quantization_config"]
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KINDS

        kind = KINDS[quantized["quant_method"]]
        if "dequantize" in inspect.signature(kind).parameters:
            return (
                "; where there are none, save what from_pretrained makes of these with "
                f"quantization_config={kind.__name__}(dequantize=True)"
            )
    return ""
