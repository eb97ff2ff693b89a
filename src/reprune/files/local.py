"""Paths on this machine as a user writes them."""

from __future__ import annotations

import os
from pathlib import Path


def local_path(given: str | os.PathLike[str]) -> Path:
    """The path that the user means: a leading `~`, which a shell may not have expanded, is the home folder."""
    try:
        return Path(given).expanduser()
    except RuntimeError:  # ~user, for a user without a home folder here
        return Path(given)
