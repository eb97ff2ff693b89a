"""JSON that carries a SHA-256 of itself, so that a changed byte is noticed. Knows nothing of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from reprune.files.wellformed import read_json

_SEAL = "sha256"


def seal(content: Mapping[str, Any], after: str = "", indent: int | None = None) -> str:
    """The JSON text of `content` with its seal.

    Args:
        content: without a key `sha256` at its top.
        after: the seal of what comes before it, where there is a sequence: none can be left out or moved.
        indent: as of `json.dumps`.
    """
    digest = hashlib.sha256((after + json.dumps(content)).encode()).hexdigest()
    return json.dumps({**content, _SEAL: digest}, indent=indent)


def unseal(text: str, after: str = "", indent: int | None = None) -> tuple[dict[str, Any], str]:
    """What was sealed, and its seal.

    Raises:
        ValueError: the text is not, byte by byte, what `seal` gave.
    """
    content = read_json(text)
    if not isinstance(content, dict) or not isinstance(found := content.pop(_SEAL, None), str):
        raise ValueError("its own SHA-256 is missing")
    if seal(content, after, indent) != text:
        raise ValueError("it has changed since it was written: its SHA-256 differs")
    return content, found
