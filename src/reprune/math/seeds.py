"""Seeds derived from a run's seed and their purpose, so that nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object, size: int = 8) -> int:
    """A seed determined by `parts`, such as a run's seed and a window's number; below 2 ** (8 * size - 1)."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:size]) >> 1
