"""A model's cache from token to token: the name of its argument, and how to run the model without it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn


def cache_argument(module: nn.Module) -> str | None:
    """The name of the argument by which a model or decoder takes its cache; None if it takes none."""
    names = inspect.signature(module.forward).parameters
    known = ("cache", "past_key_values", "cache_params")  # the last one: Mamba until Transformers 5.23
    return next((name for name in known if name in names), None)


def uncached(model: Any, ids: Tensor) -> Any:
    """The output of a model for token ids (batch, tokens), run without a cache.

    The model is told so by the argument `use_cache`, if it has one, and by its configuration, as not every forward
    hands the argument on to the model's parts.
    """
    parameters = inspect.signature(model.forward).parameters
    can = "use_cache" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    with _configured_to_keep_nothing(model):
        return model(input_ids=ids, **({"use_cache": False} if can else {}))


@contextmanager
def _configured_to_keep_nothing(model: Any) -> Iterator[None]:
    """Within this context the configurations of a model's parts say not to use a cache."""
    changed: list[tuple[Any, Any]] = []
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if kept := getattr(config, "use_cache", None):
            with suppress(AttributeError):  # a frozen configuration stays as it is
                config.use_cache = False
                changed.append((config, kept))
    try:
        yield
    finally:
        for config, kept in changed:
            config.use_cache = kept
