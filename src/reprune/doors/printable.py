"""Makes text safe to print on a terminal: others' text may hold characters that move the cursor. Knows no messages."""

from __future__ import annotations

import os
import re
import sys

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def printable(text: str) -> str:
    """`text` with a replacement character for each control character, which a terminal would obey instead of show."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def unread() -> None:
    """Send further output to the null device when its reader has gone (`| head`), so that it raises no more errors."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(message: str, end: str = "\n") -> None:
    """Print a message to standard error; if that is closed, nowhere: `print` would take standard output instead."""
    if sys.stderr is not None:
        print(printable(message), end=end, file=sys.stderr, flush=True)
