"""What can be done with quantized weights that a model has no other of. Knows what its configuration says of them."""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any


def dequantizing(said: Any) -> str:
    """How Transformers makes plain weights of quantized ones, to end a message; empty where it does not.

    `said` is the configuration's `quantization_config`.
    """
    with suppress(Exception):  # whatever is wrong in it: it only helps to say more
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KINDS

        kind = KINDS[said["quant_method"]]
        if "dequantize" in inspect.signature(kind).parameters:
            return (
                "; where there are none, save what from_pretrained makes of these with "
                f"quantization_config={kind.__name__}(dequantize=True)"
            )
    return ""
