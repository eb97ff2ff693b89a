"""Keeps what Transformers prints to itself, for as long as a context lasts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock

_IN_TURN = RLock()
"""What is set here, and what Transformers sets while it makes a model, is the whole process's."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No advice, no progress bars; errors still show. All settings are as before when the context ends.

    Threads enter it one after the other, so keep it short.
    """
    from transformers.utils import logging

    with _IN_TURN, ExitStack() as stack, warnings.catch_warnings():
        # What puts a setting back comes before it is changed: an interrupt may come at any moment.
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            stack.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        warnings.simplefilter("ignore")
        yield
