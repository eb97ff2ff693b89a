"""Writes files so that they are either whole and on disk, or not there. Knows nothing of what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file beside `path`, force it to disk, and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, durably."""
    write_durably(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file, durably. Tensors may be of any device; they are made contiguous."""
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    write_durably(path, lambda temporary: save_file(ready, temporary, metadata={"format": "pt"}))


def append_line(path: Path, line: str) -> None:
    """Append one line to a file and force it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (new names, renames) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
