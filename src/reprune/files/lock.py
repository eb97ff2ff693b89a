"""Keeps other processes out of a folder or file that one is working in. Knows nothing of the work."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reprune.errors import InputError

_A_LOOK = 0.05  # seconds to wait for `is_held` of another process, which holds the lock for microseconds


@contextmanager
def locked(
    path: Path,
    where: Path,
    what: str,
    waiting: Callable[[], None] | None = None,
    way: str = "put it on another disk",
) -> Iterator[None]:
    """Hold the lock of a folder or file. The system releases it when the process ends, however that happens.

    Args:
        path: an existing folder or file, which must not be replaced meanwhile.
        where, what: what messages call the place and the work.
        waiting: called before waiting, however long, for another process that holds the lock; None to raise instead.
        way: what messages say to do if the file system supports no locks.

    Raises:
        InputError: another process holds the lock and `waiting` is None, or the file system supports no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks only files open for writing
    try:
        try:
            _hold(descriptor, waiting)
        except BlockingIOError:
            raise InputError(f"{where}: another process is working on this {what}; wait for it or stop it.") from None
        except OSError as error:
            raise InputError(
                f"{where}: this {what} cannot be locked against other processes here ({error.strerror}); {way}."
            ) from None
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a folder; does not wait, and returns False if it cannot be determined."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _hold(descriptor: int, waiting: Callable[[], None] | None) -> None:
    """Take the lock of an open file until it is closed; without `waiting`, raises `BlockingIOError` if it is held."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            time.sleep(_A_LOOK)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
