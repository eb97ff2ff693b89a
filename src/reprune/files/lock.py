"""Keeps a second process out of a folder or file that one is working in. Knows nothing of what is done there."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reprune.errors import InputError

_A_LOOK = 0.05  # seconds; `is_held`, which holds a lock while it looks, takes microseconds


@contextmanager
def locked(
    path: Path, where: Path, what: str, wait: bool = False, way: str = "put it on another disk"
) -> Iterator[None]:
    """Hold the lock of a folder or file, which the system gives back when the process ends, however it ends.

    Args:
        path: an existing one, which is not replaced meanwhile.
        where, what: how the place and the work are called to a reader.
        wait: for another process that holds it, however long that takes.
        way: what to do where the file system gives no locks.

    Raises:
        InputError: another process holds it, or the file system gives no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks only what may be written
    try:
        try:
            hold(descriptor, (lambda: None) if wait else None)
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
    """Whether a process is working in a folder; not waited for, and no where it cannot be told."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def hold(descriptor: int, waiting: Callable[[], None] | None) -> None:
    """Take the lock of an open file until it is closed.

    Args:
        descriptor: of the file.
        waiting: is called where another process holds it, and then it is waited for; None: it is not.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system gives no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            time.sleep(_A_LOOK)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
