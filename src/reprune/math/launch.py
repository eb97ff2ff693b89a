"""Whether a launcher started this process. Loads nothing, so that a command can ask before anything else."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def speaks() -> bool:
    """Whether this process is the one that reports for all of them."""
    return not launched() or os.environ["RANK"] == "0"
