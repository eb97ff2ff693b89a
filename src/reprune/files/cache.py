"""The cache for what takes long to make: converted models, self-generated texts. Knows nothing of either."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reprune.errors import InputError
from reprune.files.lock import locked

Notify = Callable[[str], None]
"""Called with a sentence about what is going to take long."""


def cache_root() -> Path:
    """The cache's folder: $REPRUNE_CACHE, $XDG_CACHE_HOME/reprune or ~/.cache/reprune.

    Raises:
        InputError: it would be in the home folder, and there is none.
    """
    try:
        if own := os.environ.get("REPRUNE_CACHE"):
            return Path(own).expanduser().absolute()
        if (shared := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():  # relative paths are ignored
            return shared / "reprune"
        return Path.home() / ".cache" / "reprune"
    except RuntimeError as error:
        raise InputError(
            f"there is no place for the cache ({str(error).rstrip('.')}); set REPRUNE_CACHE to a folder."
        ) from None


@contextmanager
def usable_cache() -> Iterator[Path]:
    """Yields the cache's root; an `OSError` within this context becomes an `InputError` that says what to do."""
    root = cache_root()
    try:
        yield root
    except OSError as error:
        raise InputError(
            f"{root}: cannot be used for the cache ({error.strerror}); set REPRUNE_CACHE to another folder."
        ) from None


@contextmanager
def locked_cache(name: str, notify: Notify = lambda said: None) -> Iterator[Path]:
    """Hold the cache's lock of that name against other processes; yields the cache's root, which then exists.

    The lock ends with the process. Its empty file stays: removing it would let two processes hold the lock.

    Raises:
        InputError: the cache cannot be made, or the file system supports no locks.
    """
    with usable_cache() as root:
        root.mkdir(parents=True, exist_ok=True)
        lock = root / f".{name}.lock"
        lock.open("a").close()  # a link in its place may lead to a file, which "w" would empty
    way = "set REPRUNE_CACHE to a folder on another disk"
    with locked(lock, root, "cache", lambda: notify(f"waiting for another process that is making {name}"), way):
        yield root
