"""A file is written completely or not at all: a failure leaves the old file, and nothing beside it."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from reprune.files import durable
from reprune.files.durable import append_line, naming, write_durably, write_tensors, write_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that exists already, alone in its folder."""
    path = tmp_path / "folder" / "file.json"
    path.parent.mkdir()
    path.write_text("old", encoding="utf-8")
    return path


def _alone(path: Path, content: str) -> bool:
    return path.read_text(encoding="utf-8") == content and [path] == list(path.parent.iterdir())


def test_a_text_takes_the_place_of_the_old_one_and_leaves_nothing_else(path: Path) -> None:
    write_text(path, "nové\n")
    assert path.read_bytes() == "nové\n".encode()
    assert _alone(path, "nové\n")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(3)])
def test_a_write_that_fails_midway_leaves_the_old_file_and_no_temporary(path: Path, error: BaseException) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        assert _temporary_is_beside(path, temporary)
        raise error

    with pytest.raises(type(error)):
        write_durably(path, fail)
    assert _alone(path, "old")


def _temporary_is_beside(path: Path, temporary: Path) -> bool:
    return temporary.parent == path.parent and temporary != path and path.read_text() == "old"


def test_a_write_that_makes_no_file_leaves_the_old_one(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_durably(path, lambda _: None)
    assert _alone(path, "old")


def test_a_disk_that_cannot_be_reached_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no such device"):
        write_text(path, "new")
    assert _alone(path, "old")


@pytest.mark.parametrize(
    ("number", "free", "files", "said"),
    [
        (errno.ENOSPC, 500, (9, 1), "No space left on device (2.0 MB are needed, 0.5 MB are free)"),
        (
            errno.ENOSPC,
            9000,
            (9, 0),
            "No space left on device (2.0 MB are needed, 9.0 MB are free; no room for more files)",
        ),
        (errno.ENOSPC, 500, (0, 0), "No space left on device (2.0 MB are needed, 0.5 MB are free)"),
        (
            errno.ENOSPC,
            0,
            (9, 0),
            "No space left on device (2.0 MB are needed, 0.0 MB are free; no room for more files)",
        ),
        (errno.EDQUOT, 500, (9, 1), "Disk quota exceeded (2.0 MB are needed)"),
    ],
    ids=["bytes", "files", "files uncounted", "bytes, of which files are made", "quota"],
)
def test_it_is_said_what_a_disk_lacks(
    number: int, free: int, files: tuple[int, int], said: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a quota leaves is not known, and the disk's free space does not tell it.

    ZFS and XFS have room for as many more files as fit into the free bytes: none on a full disk.
    """
    counted = SimpleNamespace(f_frsize=1000, f_bavail=free, f_files=files[0], f_favail=files[1])
    monkeypatch.setattr(os, "statvfs", lambda _: counted)
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(number, os.strerror(number))))
    with pytest.raises(OSError, match=re.escape(str(path))) as raised:
        write_durably(path, Path.touch, 2_000_000)
    assert raised.value.strerror == said


def test_a_temporary_left_by_a_killed_process_does_not_stand_in_the_way(path: Path) -> None:
    path.with_name(f".{path.name}.tmp").write_text("left behind, and longer than what is written now")
    write_text(path, "new")
    assert _alone(path, "new")


@pytest.mark.parametrize("content", ["new", {"a": torch.ones(3)}])
def test_a_link_in_the_place_of_the_temporary_is_not_written_through(
    path: Path, content: str | dict[str, torch.Tensor]
) -> None:
    other = path.parent.parent / "other"
    other.write_text("mine")
    path.with_name(f".{path.name}.tmp").symlink_to(other)
    write_text(path, content) if isinstance(content, str) else write_tensors(path, content)
    assert other.read_text() == "mine"
    assert not path.is_symlink()
    assert list(path.parent.iterdir()) == [path]


def test_the_data_is_on_disk_before_the_name_and_the_name_before_the_return(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(f"{'folder' if path.read_text() == 'new' else 'data'}")
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", watch)
    write_text(path, "new")
    assert synced == ["data", "folder"]


def test_tensors_are_written_as_an_ordinary_safetensors_file(path: Path) -> None:
    tensors = {
        "seen transposed": torch.arange(6).reshape(2, 3).T,
        "a part of another": torch.arange(10)[2:5],
        "carries gradients": torch.ones(2, requires_grad=True),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    }
    write_tensors(path, tensors)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor.detach()) for name, tensor in tensors.items())
    assert list(path.parent.iterdir()) == [path]


_KILLED = """
import os, signal, sys
from pathlib import Path

import safetensors.torch
import torch

from reprune.files import durable


def killed_within(tensors, path, metadata):
    (Path(path).parent / ".tmpQx3f9a").write_bytes(b"half")  # as safetensors names its own
    os.kill(os.getpid(), signal.SIGKILL)


safetensors.torch.save_file = killed_within
durable.write_tensors(Path(sys.argv[1]), {"a": torch.ones(3)})
"""


def test_of_a_process_killed_while_it_writes_tensors_the_next_write_leaves_nothing(path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_tensors(path, {"a": torch.ones(3)})
    assert load_file(path).keys() == {"a"}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_tensors_may_be_read_by_whom_other_files_may(path: Path, mask: int) -> None:
    text = path.with_name("text")
    before = os.umask(mask)
    try:
        write_tensors(path, {"a": torch.ones(3)})
        write_text(text, "new")
    finally:
        os.umask(before)
    assert path.stat().st_mode == text.stat().st_mode


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_force_names_to_disk_takes_files_all_the_same(
    number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMB and 9p cannot force a folder's entries to disk; a failing disk still raises."""
    fsync = os.fsync

    def unknown(descriptor: int, number: int = number) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", unknown)
    write_text(path, "new")
    append_line(path.with_name("lines"), "one")
    assert path.read_text() == "new"
    monkeypatch.setattr(durable.os, "fsync", lambda descriptor: unknown(descriptor, errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_text(path, "newer")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_rights_takes_tensors_all_the_same(
    number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, number: int = number, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "chmod", unknown)
    write_tensors(path, {"a": torch.ones(3)})
    assert load_file(path).keys() == {"a"}
    monkeypatch.setattr(os, "chmod", lambda *_, **__: unknown(number=errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_tensors(path, {"a": torch.ones(3)})


def test_an_error_of_the_system_is_named_in_the_form_that_safetensors_gives_it(path: Path) -> None:
    said = r"\(2\.0 MB are needed, \d+\.\d MB are free\)"
    with pytest.raises(OSError, match=said) as full, naming(path, 2_000_000):
        raise SafetensorError(f"Error while serializing: I/O error: whatever (os error {errno.ENOSPC})")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(path))
    with pytest.raises(SafetensorError, match="no header"), naming(path):
        raise SafetensorError("no header")


def test_lines_are_appended_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, '{"a": 1}')
    append_line(path, '{"b": "é"}')
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"b": "é"}\n'


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "file", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_line_and_the_name_of_its_file_are_on_disk_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, fsync = tmp_path / "lines", list[str](), os.fsync

    def watch(descriptor: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else path.read_text())
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", watch)
    append_line(path, "one")
    append_line(path, "two")
    assert synced == ["one\n", "folder", "one\ntwo\n", "folder"]


def test_a_line_that_cannot_be_forced_to_disk_is_taken_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")

    def full(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(str(path))):
        append_line(path, "two")
    assert path.read_text() == "one\n"


def test_a_line_that_the_system_takes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any, /) -> int:
            return super().write(bytes(data)[:3])

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Slow(path, mode))
    append_line(tmp_path / "lines", "a line of some length")
    monkeypatch.undo()
    assert (tmp_path / "lines").read_text() == "a line of some length\n"
