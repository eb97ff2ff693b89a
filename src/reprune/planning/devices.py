"""What devices are called."""

from __future__ import annotations

import re

KINDS = ("cuda",)
"""Kinds of accelerators, as PyTorch calls them."""


def is_device(name: str) -> bool:
    """Whether this names a device: `auto`, `cpu`, an accelerator's kind, or one of a kind by its number."""
    return re.fullmatch(rf"auto|cpu|({'|'.join(KINDS)})(:(0|[1-9][0-9]*))?", name) is not None
