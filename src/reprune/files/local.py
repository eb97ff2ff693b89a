"""Paths on this machine as a user writes them."""

from __future__ import annotations

import os
from pathlib import Path


def local_path(given: str | os.PathLike[str]) -> Path:
    """The path that is meant: `~` is the home folder, also where no shell has put that in its place."""
    try:
        return Path(given).expanduser()
    except RuntimeError:  # ~someone who has no home here
        return Path(given)
