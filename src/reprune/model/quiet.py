"""Suppresses what Transformers and other libraries print, for as long as a context lasts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import ERROR, getLogger
from threading import RLock

_IN_TURN = RLock()
"""The settings here, and those that Transformers changes while it builds a model, belong to the whole process."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No advice and no progress bars; errors are still shown. All settings are restored when the context ends.

    Only one thread at a time can be in it, so keep it short.
    """
    from transformers.utils import logging

    with _IN_TURN, ExitStack() as stack, warnings.catch_warnings():
        # The callback that restores a setting is added before its change, as an interrupt may come at any moment.
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            stack.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet_logger(name: str, level: int = ERROR) -> Iterator[None]:
    """Of what a library logs under this name, only lines of at least this level are shown."""
    logger = getLogger(name)
    before = logger.level
    try:
        logger.setLevel(level)
        yield
    finally:
        logger.setLevel(before)
