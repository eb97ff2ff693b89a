"""Paths on this machine as a user writes them, and commands for messages that name them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from reprune.errors import InputError, of_type


def local_path(given: str | os.PathLike[str], what: str = "path") -> Path:
    """The path that the user means: a leading `~`, which a shell may not have expanded, is the home folder.

    Raises `InputError`, which names the argument by `what`, if it is no path.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"{what}: expected a path, got {of_type(given)}.")
    try:
        return Path(given).expanduser()
    except RuntimeError:  # ~user, for a user without a home folder here
        return Path(given)


def quoted_command(*words: str) -> str:
    """A command line for messages, in quotes other than those that a shell needs within it."""
    line = shlex.join(words)
    return f'"{line}"' if "'" in line else f"'{line}'"
