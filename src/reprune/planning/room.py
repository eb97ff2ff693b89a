"""Recognizes that a library failed because its own files had no room or no locks, not because of what it read."""

from __future__ import annotations

import errno
import os
import tempfile

from reprune.errors import causes

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: BaseException, folder: str | None = None, variable: str = "TMPDIR") -> OSError | None:
    """The error to raise in place of one caused by a lack of room or locks, in whatever form; None for any other.

    `folder` is where the library keeps its files, by default the system's temporary folder; `variable` is the
    environment variable that names another.
    """
    for found in causes(error):
        if isinstance(found, OSError) and found.errno in (*_NUMBERS, errno.ENOLCK):
            place = "on another disk" if found.errno == errno.ENOLCK else "with room"
            said = f"{os.strerror(found.errno)}, where temporary files go; set {variable} to a folder {place}"
            return OSError(found.errno, said, folder or tempfile.gettempdir())
    return None
