"""Ends commands on Ctrl-C, and on SIGTERM in the same way. Knows no command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from reprune.math.launch import speaks

_BARE_LINE = "\r\x1b[2K\x1b[?25h"
"""Clears a progress bar from the terminal's line, and shows the cursor that it hides."""


def heed_at_once(say: Callable[[], None]) -> None:
    """Have an interrupt call `say` and end the process."""
    _handle(lambda _number, _frame: _end(say))


def heed_interrupts(say: Callable[[], None]) -> None:
    """Have an interrupt raise `KeyboardInterrupt`; during an import, it calls `say` and ends the process instead.

    An exception in an import may be taken for a missing part of a library, or abort the process. A second interrupt
    also ends the process: an exception would hit whatever handles the first one.
    """

    def interrupt(_: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            _end(say)
        heed_at_once(say)
        raise KeyboardInterrupt

    _handle(interrupt)


def heed_no_more() -> None:
    """Have further interrupts end the process without a message, as it has been printed."""
    _handle(lambda _number, _frame: os._exit(1))


def _end(say: Callable[[], None]) -> NoReturn:
    try:
        with suppress(OSError, RuntimeError):  # a closed pipe, or a write that was interrupted
            if sys.__stdout__ is not None:
                print(_BARE_LINE if sys.__stdout__.isatty() else "", end="", file=sys.__stdout__, flush=True)
        if speaks():
            say()
    finally:  # even if nobody reads the message
        os._exit(1)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for what a shell starts in the background
        signal.signal(signal.SIGINT, handler)
