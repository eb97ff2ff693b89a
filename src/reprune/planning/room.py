"""Recognizes that a library failed for lack of memory, or of room or locks for its own files, not by its input."""

from __future__ import annotations

import errno
import os
import tempfile

from reprune.errors import causes, out_of_memory

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: BaseException, folder: str | None = None, variable: str = "TMPDIR") -> BaseException | None:
    """The error to raise in place of one caused by a lack of room, locks or memory, in whatever form; else None.

    `folder` is where the library keeps its files, by default the system's temporary folder; `variable` is the
    environment variable that names another.
    """
    for found in causes(error):
        if isinstance(found, OSError) and found.errno in (*_NUMBERS, errno.ENOLCK):
            place = "on another disk" if found.errno == errno.ENOLCK else "with room"
            said = f"{os.strerror(found.errno)}, where temporary files go; set {variable} to a folder {place}"
            return OSError(found.errno, said, folder or tempfile.gettempdir())
        if out_of_memory(found) is not None:
            return found
    return None


def cache_of_the_hub() -> tuple[str, str]:
    """The folder that caches data sets of the Hub, and the environment variable that moves it."""
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE), "HF_HOME"
