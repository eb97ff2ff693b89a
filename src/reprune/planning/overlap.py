"""Detects whether a text contains what a model was calibrated on, without storing the calibration text.

Of all passages of 24 tokens in the samples, a sketch keeps the 256 lowest hashes (min-hash, Broder 1997). The share of
them that a text contains estimates the share of the samples' passages that it contains, to about 3 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_PASSAGE = 24  # tokens; texts that have this many in a row in common by chance are boilerplate
_KEPT = 256
_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]


def sketch(ids: Tensor) -> dict[str, Any]:
    """The sketch of samples (samples, tokens), int64, for `overlap`; it can be written as JSON."""
    tokens = min(_PASSAGE, -(-ids.shape[1] // 2))  # less than a sample, whose first token (BOS) may be in no text
    lowest = np.unique(_hashes(ids, tokens))[:_KEPT]
    return {"tokens": tokens, "hashes": [f"{value:016x}" for value in lowest]}


def overlap(known: dict[str, Any], ids: Tensor) -> float:
    """The share of a sketch's passages that are in other samples (samples, tokens), tokenized as those were.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: `known` is not a sketch.
    """
    hashes = np.array([int(value, 16) for value in known["hashes"]], dtype=np.uint64)
    tokens = int(known["tokens"])
    if not len(hashes) or not 0 < tokens <= ids.shape[1]:
        return 0.0
    return float(np.isin(hashes, _hashes(ids, tokens)).mean())


def _hashes(ids: Tensor, tokens: int) -> Hashes:
    """The hashes of all passages of this number of tokens within the samples, uint64."""
    values = ids.to(torch.int64).numpy().astype(np.uint64)  # (samples, tokens)
    places = values.shape[1] - tokens + 1
    found = np.zeros((len(values), places), dtype=np.uint64)
    with np.errstate(over="ignore"):  # modulo 2^64
        for step in range(tokens):
            found = found * _BASE + values[:, step : step + places] + np.uint64(1)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # mix, so that order is random
            found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    mixed: Hashes = found.reshape(-1) ^ (found.reshape(-1) >> np.uint64(31))
    return mixed
