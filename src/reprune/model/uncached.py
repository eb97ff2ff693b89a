"""Runs a model so that it keeps nothing from token to token. Knows nothing of what comes of it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


def uncached(model: Any, ids: Tensor) -> Any:
    """What a model gives for token ids (batch, tokens), told to keep nothing where its forward can be told."""
    parameters = inspect.signature(model.forward).parameters
    told = "use_cache" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return model(input_ids=ids, use_cache=False) if told else model(input_ids=ids)
