"""Writes files so that they are either complete and on disk, or not there. Knows nothing of their contents."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from reprune.errors import InputError

if TYPE_CHECKING:  # code that writes no tensors need not import PyTorch
    from torch import Tensor

_CHUNK_BYTES = 2**22  # read at a time
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_UNKNOWN = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP)
"""Error numbers of file systems that do not support an operation, such as a disk of Windows."""


def write_durably(path: Path, write: Callable[[Path], object], size: int | None = None) -> None:
    """Let `write` make a temporary file beside `path`, force it to disk, and rename it to `path`.

    Args:
        path: the file.
        write: called with the temporary file's path.
        size: the number of bytes that it writes, if known; for the message of an error.

    Raises:
        OSError: the file cannot be written; one that existed is unchanged, and the error names `path`.
    """
    temporary = unfinished(path)
    with naming(path, size):
        temporary.unlink(missing_ok=True)  # it may be a link, which `write` would write through
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def unfinished(path: Path) -> Path:
    """The temporary path at which a file is written; a killed process may leave a file there."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def naming(path: Path, size: int | None = None) -> Iterator[None]:
    """Within this context errors of the system, also from safetensors, name this file and any lack of space."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise _named(int(number[1]), path, size) from None
    except OSError as error:
        if error.errno is None:
            raise
        raise _named(error.errno, path, size) from None


def _named(number: int, path: Path, size: int | None) -> OSError:
    facts = []
    if number in (errno.ENOSPC, errno.EDQUOT) and size is not None:
        facts.append(f"{size / 1e6:.1f} MB are needed")
    if number == errno.ENOSPC:  # what is left of a quota is not known
        facts.append(_left(path.parent))
    return OSError(number, os.strerror(number) + (f" ({', '.join(facts)})" if facts else ""), str(path))


def _left(folder: Path) -> str:
    """The free space of a folder's file system in words, and whether it has no room for more files.

    Both are said, because some file systems have no room for more files whenever they are out of bytes.
    """
    found = os.statvfs(folder)
    no_file = "; no room for more files" if found.f_files and not found.f_favail else ""
    return f"{found.f_bavail * found.f_frsize / 1e6:.1f} MB are free{no_file}"


@contextmanager
def refusing(out: Path) -> Iterator[None]:
    """Within this context, where the file `--out` goes, a place that cannot be written is an error of the user.

    Raises:
        InputError: instead of an `OSError` that says so; any other, such as one of a full disk, stays as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        place = "" if error.filename in (None, str(out)) else f"{error.filename} "
        said = f"{place}cannot be written ({error.strerror})"
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            said = "a file is in the place of one of its folders"
        raise InputError(f"--out {out}: {said}; give another file.") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, durably."""
    write_durably(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one safetensors file, durably. They may be on any device and need not be contiguous."""
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in ready.values())
    write_durably(path, lambda temporary: _save(ready, temporary), size)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    return load_file(path)


def _save(tensors: dict[str, Tensor], temporary: Path) -> None:
    """Write tensors by way of a folder beside `temporary`, and give the file the permissions of any other new file.

    safetensors writes to a temporary file of its own, with another name in each process, which a killed process leaves
    behind; the next write empties the folder. The file that it makes is readable only by its owner.
    """
    from safetensors.torch import save_file

    temporary.touch()  # with the permissions that new files get here
    folder = temporary.with_suffix(".parts")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        save_file(tensors, folder / temporary.name, metadata={"format": "pt"})
        copy_rights(temporary, folder / temporary.name)
        (folder / temporary.name).replace(temporary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_rights(source: Path, target: Path) -> None:
    """Copy a file's permissions to another file, if the file system allows setting them."""
    try:
        shutil.copymode(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, *_UNKNOWN):
            raise


def own(path: Path) -> None:
    """Replace a file that has several names (hard links) by a copy, so that later writes do not reach the other names.

    A lock held on the file stays with the other names.
    """
    path = path.resolve()  # what a link leads to
    if path.stat().st_nlink > 1:
        write_durably(path, partial(shutil.copyfile, path), path.stat().st_size)


def append_line(path: Path, line: str) -> None:
    """Append one line to a file and force it to disk; if that fails, the file is truncated to its former size."""
    with naming(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        left = memoryview(line.encode() + b"\n")
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
    sync_folder(path.parent)


def whole_lines(path: Path) -> bytes:
    """All complete lines of a file; whatever a crash left after the last of them is removed from the file."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        cut(path, len(whole))
    return whole


def cut(path: Path, size: int) -> None:
    """Truncate a file to `size` bytes, durably."""
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def sha256(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """The SHA-256 of a file's contents. `stopped` is called every 4 MiB; once it returns True the result is useless."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while (chunk := file.read(_CHUNK_BYTES)) and not stopped():
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (new names, renames) to disk, if the file system supports that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(descriptor)
