"""JSON from files that anyone may have written. Knows nothing of what it says."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 100  # levels of lists and objects in each other: far beyond what any file holds, far below Python's limit


def read_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is none, or nested deeper than what goes through it level by level could bear.
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
