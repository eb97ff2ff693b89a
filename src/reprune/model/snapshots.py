"""Folders of the Hugging Face cache, which are named by commits: their commit, their model's name, how to change one.

Reads only names of folders.
"""

from __future__ import annotations

import re
from pathlib import Path

COMMIT = re.compile(r"[0-9a-f]{40}")  # folder names in the caches of models and data sets
_REPOSITORY = "models--"


def hub_commit(folder: Path) -> str | None:
    """The commit of a Hub model, by which the cache names its folder; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


def by_hand(folder: Path, change: str) -> str:
    """A change to a model's files in words; of a model in the Hub's cache, which is not to be changed, to a copy."""
    if (model := called(folder)) == folder.name:
        return change
    return f"'hf download {model} --revision {folder.name} --local-dir FOLDER', {change} there, then give FOLDER"


def called(folder: Path) -> str:
    """A model's name in messages: its Hub id, or the name of any other folder."""
    repository = folder.parents[1].name if hub_commit(folder) else ""
    if not repository.startswith(_REPOSITORY):
        return folder.name
    return repository.removeprefix(_REPOSITORY).replace("--", "/")
