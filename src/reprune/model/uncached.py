"""What a model keeps from token to token: under which name, and how it is run so that it keeps nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn


def cache_argument(module: nn.Module) -> str | None:
    """What a model or decoder calls the keys and values that it keeps; None where it keeps none that can be given."""
    names = inspect.signature(module.forward).parameters
    known = ("cache", "past_key_values", "cache_params")  # the last of Mamba until Transformers 5.23
    return next((name for name in known if name in names), None)


def uncached(model: Any, ids: Tensor) -> Any:
    """What a model gives for token ids (batch, tokens), told to keep nothing where it can be, and by its configuration.

    Not every forward that can be told hands it on to the model's parts.
    """
    parameters = inspect.signature(model.forward).parameters
    can = "use_cache" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    with _configured_to_keep_nothing(model):
        return model(input_ids=ids, **({"use_cache": False} if can else {}))


@contextmanager
def _configured_to_keep_nothing(model: Any) -> Iterator[None]:
    """What a model's parts do where they are not told is to keep nothing."""
    changed: list[tuple[Any, Any]] = []
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if kept := getattr(config, "use_cache", None):
            with suppress(AttributeError):  # a frozen one stays as it is
                config.use_cache = False
                changed.append((config, kept))
    try:
        yield
    finally:
        for config, kept in changed:
            config.use_cache = kept
