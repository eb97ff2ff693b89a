"""What may be printed on a terminal: text that others wrote may hold what moves the cursor. Knows no messages."""

from __future__ import annotations

import os
import re
import sys

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def printable(text: str) -> str:
    """`text` with a sign in place of each character that a terminal would obey rather than show."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def unread() -> None:
    """Of output that nobody reads any more (`| head`), write no more, so that it comes to no other error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(message: str) -> None:
    """Print a message where errors go."""
    print(printable(message), file=sys.stderr, flush=True)
