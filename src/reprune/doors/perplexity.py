"""Perplexity of a whole model, loaded by plain Transformers, over non-overlapping windows of a text.

Protocol: the text is tokenized once, without special tokens, and cut in order into windows of `seqlen` tokens. Where
the tokenizer adds a beginning-of-sequence token, each window is that token and the seqlen - 1 tokens that follow.
Every token but a window's first is predicted from those before it; the perplexity is exp of the mean loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from reprune.errors import InputError, NumericalError
from reprune.model.block import Precision
from reprune.model.quiet import quiet_transformers

_LARGEST_EXPONENT = 709.0  # of a float64
_LOGIT_ELEMENTS = 2**25  # logits held at a time, in numbers: 128 MiB in float32


@final
@dataclass(frozen=True)
class Perplexity:
    """A perplexity with all that decides it, so that no two are compared by mistake."""

    perplexity: float
    model: str
    text: str
    text_sha256: str
    seqlen: int  # tokens a window
    windows: int
    tokens: int  # predicted
    bos: bool  # whether each window begins with the beginning-of-sequence token
    precision: str


@torch.no_grad()
def perplexity(
    model: Any, windows: Tensor, precision: Precision, progress: Callable[[int], None] = lambda done: None
) -> float:
    """exp of the mean loss over all predicted tokens of windows (windows, tokens), int64.

    Logits are computed in slices, so that a large vocabulary fits small memory.

    Raises:
        NumericalError: the loss is not finite.
    """
    total, predicted = 0.0, 0
    with precision.on(model.device):  # one context for all windows, in which each weight is converted once
        for number, ids in enumerate(windows.to(model.device).split(1)):
            for logits, targets in _sliced(model, ids):
                total += F.cross_entropy(logits.float(), targets, reduction="sum").item()
                predicted += len(targets)
            progress(number + 1)
    loss = total / predicted
    if not math.isfinite(loss):
        raise NumericalError("the model's loss on this text is not finite")
    return math.exp(loss) if loss < _LARGEST_EXPONENT else math.inf


def _sliced(model: Any, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (slice, vocabulary) and the tokens (slice,) they should predict, for ids (1, tokens), slice by slice.

    The decoder runs once; then the model's own forward applies its head, scaling and caps to slices of its output.
    """
    size = max(_LOGIT_ELEMENTS // max(int(model.config.get_text_config().vocab_size), 1), 1)
    decoder = model.get_decoder()
    output = decoder(input_ids=ids, use_cache=False)
    states = output.last_hidden_state
    try:
        for first in range(0, ids.shape[1] - 1, size):
            last = min(first + size, ids.shape[1] - 1)
            part = replace(output, last_hidden_state=states[:, first:last])
            decoder.forward = lambda *_, part=part, **__: part
            logits = model(input_ids=ids[:, first:last], use_cache=False).logits
            yield logits[0], ids[0, first + 1 : last + 1]
    finally:
        vars(decoder).pop("forward", None)


def load_model(folder: Path, device: torch.device, trust_remote_code: bool) -> Any:
    """A whole model, float32, in evaluation mode; raises `InputError` where Transformers cannot load it."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{folder}: Transformers cannot load it: {' '.join(str(error).split()):.300}") from None
    return model.to(device).eval()
