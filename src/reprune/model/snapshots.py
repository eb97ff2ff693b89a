"""Folders of the Hugging Face cache, which are named by commits: which commit, and what the model is called.

Reads names of folders alone.
"""

from __future__ import annotations

import re
from pathlib import Path

COMMIT = re.compile(r"[0-9a-f]{40}")  # as the caches of models and of data sets name folders
_REPOSITORY = "models--"


def hub_commit(folder: Path) -> str | None:
    """The commit of a Hub's model, whose cache names folders by it; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


def called(folder: Path) -> str:
    """What a model is called in messages: its Hub id, or the last part of any other folder."""
    repository = folder.parents[1].name if hub_commit(folder) else ""
    if not repository.startswith(_REPOSITORY):
        return folder.name
    return repository.removeprefix(_REPOSITORY).replace("--", "/")
