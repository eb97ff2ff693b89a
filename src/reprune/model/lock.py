"""Keeps a second process out of a folder or file that one is working in. Knows nothing of what is done there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reprune.errors import InputError


@contextmanager
def locked(path: Path, where: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder or file, which the system gives back when the process ends, however it ends.

    Args:
        path: an existing one, which is not replaced meanwhile.
        where, what: how the place and the work are called to a reader.
        wait: for another process that holds it, however long that takes.

    Raises:
        InputError: another process holds it, or the file system gives no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks only what may be written
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(f"{where}: another process is working on this {what}; wait for it or stop it.") from None
        except OSError as error:
            raise InputError(
                f"{where}: the file system gives no lock that keeps other processes out of this {what} "
                f"({error.strerror}); put it on another disk."
            ) from None
        yield
    finally:
        os.close(descriptor)
