"""Reads JSON from untrusted files. Knows nothing of its contents."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 100  # levels of nested lists and objects: far beyond any real file, far below Python's recursion limit


def read_json(text: str | bytes) -> Any:
    """The contents of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deep for code that recurses through it.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    level = [content]
    for _ in range(_DEEPEST + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return content
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError("it is nested too deeply")
