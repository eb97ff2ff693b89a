"""The names of devices."""

from __future__ import annotations

import re

KINDS = ("cuda",)
"""Kinds of accelerators, as PyTorch calls them."""


def is_device(name: str) -> bool:
    """Whether this names a device: `auto`, `cpu`, or a kind of accelerator, with or without a number."""
    return re.fullmatch(rf"auto|cpu|({'|'.join(KINDS)})(:(0|[1-9][0-9]*))?", name) is not None
