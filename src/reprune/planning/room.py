"""Where a library finds no room, or no locks, for its own files, that is said of these: not of what it was reading."""

from __future__ import annotations

import errno
import os
import tempfile

from reprune.errors import causes

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: BaseException, folder: str | None = None, variable: str = "TMPDIR") -> OSError | None:
    """The error to raise in place of one that comes of no room or no locks, in whatever form; None of any other.

    `folder` is where the library's files are, by default the system's for temporary ones; the variable of the
    environment names another.
    """
    for found in causes(error):
        if isinstance(found, OSError) and found.errno in (*_NUMBERS, errno.ENOLCK):
            place = "on another disk" if found.errno == errno.ENOLCK else "with room"
            said = f"{os.strerror(found.errno)}, where temporary files go; set {variable} to a folder {place}"
            return OSError(found.errno, said, folder or tempfile.gettempdir())
    return None
