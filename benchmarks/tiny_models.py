"""Tiny random models of every kind that the installed Transformers registers, and text to calibrate them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from runs import write_tokenizer
from tiny_configs import ODD, shrunk
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

CAUSAL: Mapping[str, Any] = dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM)
SEVERAL_PARTS: Mapping[str, Any] = {
    **dict.fromkeys(MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, AutoModelForSpeechSeq2Seq),
    **dict.fromkeys(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, AutoModelForMultimodalLM),
}
"""By architecture, the class that makes a model from its configuration: language models, and those of several parts."""

SEQLEN = 32


def build(kinds: Mapping[str, Any], model_type: str, folder: Path) -> Any:
    """Write a tiny model of random weights, and a tokenizer; returns the model."""
    kind = CONFIG_MAPPING[model_type]
    config = kind(**shrunk(kind, ODD.get(model_type)))
    auto = kinds[model_type]
    causal = auto is AutoModelForCausalLM
    if causal and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    torch.manual_seed(0)
    model: Any = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.08 if parameter.dim() > 1 else 0.02))
    model.eval()
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    write_tokenizer(folder)
    if causal:  # others may not run on text alone
        ids = torch.arange(2 * SEQLEN).view(2, SEQLEN) % 256
        with torch.no_grad():
            if not torch.isfinite(model(input_ids=ids, use_cache=False).logits).all():
                raise ValueError("its logits are not finite")
    return model


def write_text(out: Path) -> None:
    """Write the calibration text."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "text.txt").write_text("\n\n".join(topics[key] for key in sorted(topics))[:60_000], encoding="utf-8")
