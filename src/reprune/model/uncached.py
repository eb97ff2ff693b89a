"""Runs a model so that it keeps nothing from token to token. Knows nothing of what comes of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def uncached(model: Any, ids: Tensor) -> Any:
    """What a model gives for token ids (batch, tokens), told to keep nothing; by its configuration where not else."""
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return model(input_ids=ids, use_cache=False)
    with _configured_to_keep_nothing(model):
        return model(input_ids=ids)


@contextmanager
def _configured_to_keep_nothing(model: Any) -> Iterator[None]:
    """What a model's parts do where they are not told is to keep nothing."""
    changed: list[tuple[Any, Any]] = []
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if kept := getattr(config, "use_cache", None):
            changed.append((config, kept))
            config.use_cache = False
    try:
        yield
    finally:
        for config, kept in changed:
            config.use_cache = kept
