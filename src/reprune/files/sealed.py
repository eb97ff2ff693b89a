"""JSON that holds a SHA-256 of itself, so that a changed byte is detected. Knows nothing of files."""

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
        content: without a key `sha256` at the top level.
        after: in a sequence, the seal of the previous text, so that none can be removed or reordered.
        indent: as in `json.dumps`.
    """
    digest = hashlib.sha256((after + json.dumps(content)).encode()).hexdigest()
    return json.dumps({**content, _SEAL: digest}, indent=indent)


def unseal(text: str, after: str = "", indent: int | None = None) -> tuple[dict[str, Any], str]:
    """The sealed content and its seal; the arguments are those of `seal`.

    Raises:
        ValueError: the text is not, byte for byte, what `seal` returned.
    """
    content = read_json(text)
    if not isinstance(content, dict) or not isinstance(found := content.pop(_SEAL, None), str):
        raise ValueError("its own SHA-256 is missing")
    if seal(content, after, indent) != text:
        raise ValueError("it has changed since it was written: its SHA-256 differs")
    return content, found
