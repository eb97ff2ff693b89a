"""Removes from a URL what may be secret. Knows nothing of servers, or of what a URL names."""

from __future__ import annotations

import re


def without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment, even if a slash in its password makes it invalid."""
    return re.split(r"[?#]", re.sub(r"^(\w+://)?.*@", r"\1", url, flags=re.DOTALL), maxsplit=1)[0]
