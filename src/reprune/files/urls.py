"""Writes a URL without what may be secret in it. Knows nothing of servers, nor of what a URL names."""

from __future__ import annotations

import re


def without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment, also where it is no URL for a slash in its password."""
    return re.split(r"[?#]", re.sub(r"^(\w+://)?.*@", r"\1", url, flags=re.DOTALL), maxsplit=1)[0]
