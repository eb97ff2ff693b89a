"""A lock keeps a second process out, and the system's reason is reported if it gives none."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reprune.errors import InputError
from reprune.files.lock import is_held, locked


@pytest.mark.parametrize("folder", [True, False])
def test_what_another_holds_is_refused_until_it_lets_go(folder: bool, tmp_path: Path) -> None:
    path = tmp_path if folder else tmp_path / "file"
    path.touch()
    assert not is_held(path)
    with locked(path, path, "run"):
        assert is_held(path)
        with pytest.raises(InputError, match="another process is working on this run"), locked(path, path, "run"):
            pass
    assert not is_held(path)
    with locked(path, path, "run"):
        pass


def test_a_process_that_only_looks_keeps_no_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` may look while `resume` begins."""
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(looking))
    with locked(tmp_path, tmp_path, "run"):
        assert is_held(tmp_path)


def test_who_waits_for_a_lock_says_so_and_has_it_when_it_is_free(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with locked(tmp_path, tmp_path, "run", waiting=lambda: os.close(held)):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


@pytest.mark.parametrize("waiting", [None, lambda: None])
def test_a_file_system_without_locks_is_no_other_process(
    waiting: Callable[[], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    assert not is_held(tmp_path)
    said = r"out: this run cannot be locked against other processes here \(No locks available\)"
    with pytest.raises(InputError, match=said), locked(tmp_path, Path("out"), "run", waiting):
        pass


def test_a_file_is_locked_as_one_that_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS gives no exclusive lock on a file that is open for reading only."""
    modes: list[int] = []
    monkeypatch.setattr(fcntl, "flock", lambda held, _: modes.append(fcntl.fcntl(held, fcntl.F_GETFL) & os.O_ACCMODE))
    (tmp_path / "file").touch()
    with locked(tmp_path / "file", tmp_path, "file"), locked(tmp_path, tmp_path, "cache"):
        assert modes == [os.O_RDWR, os.O_RDONLY]
