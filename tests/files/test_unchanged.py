"""Files that were written to or replaced are detected without being read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reprune.errors import ChangedError, going_on
from reprune.files.unchanged import Unchanged


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    for file in (one, other):
        file.write_bytes(b"1234")
        os.utime(file, ns=(0, 10**18))
    return one, other


def _write_in_place(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(b"5")


def _replace(file: Path) -> None:
    new = file.with_name("new")
    new.write_bytes(b"5678")
    new.replace(file)


def _append(file: Path) -> None:
    before = file.stat().st_mtime_ns
    with file.open("ab") as stream:
        stream.write(b"5")
    os.utime(file, ns=(0, before))  # as if the system's clock stood still


@pytest.mark.parametrize("change", [_write_in_place, _replace, _append])
def test_a_file_that_was_changed_is_named(change: Callable[[Path], None], files: tuple[Path, Path]) -> None:
    one, other = files
    unchanged = Unchanged(files)
    unchanged.check()
    change(other)
    unchanged.check(one)
    for asked in ((), (other,)):
        with pytest.raises(ChangedError, match=r"other: was changed .* put the original file back"):
            unchanged.check(*asked)


def test_the_same_file_under_another_number_is_not_changed(files: tuple[Path, Path]) -> None:
    """A network file system may have changed its inode number."""
    one, other = files
    unchanged = Unchanged(files)
    number = one.stat().st_ino
    other.write_bytes(one.read_bytes())
    os.utime(other, ns=(0, 10**18))
    other.replace(one)
    assert one.stat().st_ino != number
    unchanged.check(one)


def test_a_file_that_is_gone_is_an_error_of_the_system(files: tuple[Path, Path]) -> None:
    unchanged = Unchanged(files)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match="other"):
        unchanged.check()


def test_how_to_go_on_is_said_behind_it() -> None:
    with pytest.raises(ChangedError, match=r"^a file[.] Go on[.]$"), going_on("Go on."):
        raise ChangedError("a file.")
