"""Writes files so that they are either whole and on disk, or not there. Knows nothing of what they hold."""

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

if TYPE_CHECKING:  # what writes no tensors does without PyTorch
    from torch import Tensor

_CHUNK_BYTES = 2**22  # read at a time
_UNKNOWN = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP)
"""What a file system answers that does not know of what it is asked; that of a disk of Windows', for one."""


def write_durably(path: Path, write: Callable[[Path], object], size: int | None = None) -> None:
    """Let `write` make a temporary file beside `path`, force it to disk, and rename it to `path`.

    Args:
        path: the file.
        write: is given the temporary's path.
        size: how many bytes it writes, where that is known.

    Raises:
        OSError: it cannot be written; what was there is left as it was, and the error names `path`.
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
    """Where a file is made before it gets its name; what a process that is killed may leave."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def naming(path: Path, size: int | None = None) -> Iterator[None]:
    """Have an error of the system name this file, in whatever form a library hands it on, and say what lacks room."""
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
    if number == errno.ENOSPC:  # of a quota it is not known what is left
        facts.append(_left(path.parent))
    return OSError(number, os.strerror(number) + (f" ({', '.join(facts)})" if facts else ""), str(path))


def _left(folder: Path) -> str:
    """What the file system of a folder has left, of that which ran out: bytes, or files, if it counts these."""
    found = os.statvfs(folder)
    if found.f_files and not found.f_favail:
        return "the file system has no room for more files: remove some"
    return f"{found.f_bavail * found.f_frsize / 1e6:.1f} MB are free"


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, durably."""
    write_durably(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file, durably. Tensors may be of any device; they are made contiguous."""
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in ready.values())
    write_durably(path, lambda temporary: _save(ready, temporary), size)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    return load_file(path)


def _save(tensors: dict[str, Tensor], temporary: Path) -> None:
    """Write tensors in a folder beside `temporary`, which the next write empties, and as readable as other files.

    safetensors writes to a file of its own beside the one that it is given, and gives it another name in each process:
    one that is killed leaves it. Nobody but its owner may read it.
    """
    from safetensors.torch import save_file

    temporary.touch()  # with the rights that the system gives any new file here
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
    """Have the same people read and write both files, where the file system lets anybody say who does."""
    try:
        shutil.copymode(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, *_UNKNOWN):
            raise


def own(path: Path) -> None:
    """Make a file anew that has other names too, as in a copy by hard links: what is written then is this name's alone.

    Nobody may hold a lock of it.
    """
    if path.stat().st_nlink > 1:
        write_durably(path, partial(shutil.copyfile, path))


def append_line(path: Path, line: str) -> None:
    """Append one line to a file and force it to disk; where that fails, the file is cut to what it was."""
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
    """All whole lines of a file; what a crash has left after the last of them is cut off."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        cut(path, len(whole))
    return whole


def cut(path: Path, size: int) -> None:
    """Cut a file to so many bytes, durably."""
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def sha256(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """Of a file's contents; of no meaning once `stopped` says so, which is asked every few MB."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while (chunk := file.read(_CHUNK_BYTES)) and not stopped():
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (new names, renames) to disk, where the file system knows how to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(descriptor)
