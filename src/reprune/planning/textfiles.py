"""Reads local text files, plain or gzipped, and finds the line at which they are wrong.

Knows encodings and JSON syntax, nothing of data sets or of what the text is for.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast, final

from reprune.errors import InputError
from reprune.files.wellformed import read_json

_LARGE = 2**30  # bytes that any compressed file may unpack to
_PACKED = 200  # compression ratio that no text reaches; gzip reaches a thousand on repeated bytes
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def is_text_file(name: str) -> bool:
    """Whether a file is plain text, by its name."""
    return name.lower().endswith((".txt", ".txt.gz"))


@contextlib.contextmanager
def open_bytes(path: Path, label: str) -> Iterator[BinaryIO]:
    """Open a file for reading, through gzip if its name ends in .gz.

    Raises InputError, here or while the file is read, if it cannot be opened or its compression is damaged.
    """
    try:
        compressed = path.name.lower().endswith(".gz")
        with cast("BinaryIO", gzip.open(path)) if compressed else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"{label}: expected a file that can be read, but: {reason}; check the file and its permissions"
        ) from error


def read_text(path: Path, label: str) -> str:
    """The whole text of a file, with its own line ends, without a byte order mark.

    Raises InputError if it cannot be read, is not UTF-8, or is only white space.
    """
    text = _decoded(path, label)
    if not text.strip():
        raise _empty(label)
    return text


@final
class TextFiles:
    """Whole files as a column of texts; every access reads from disk."""

    def __init__(self, paths: Sequence[Path], label: str) -> None:
        self._paths = paths
        self._label = label

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int, /) -> str:
        """The text of one file. Raises InputError if it cannot be read or is not UTF-8."""
        path = self._paths[index]
        return _decoded(path, f"{self._label}, file {path.name!r}")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


def _decoded(path: Path, label: str) -> str:
    with open_bytes(path, label) as file:
        data = _unpacked(file, path, label) if path.name.lower().endswith(".gz") else file.read()
    if (place := data.find(b"\0")) >= 0:  # about every other byte is zero in UTF-16
        line = data.count(b"\n", 0, place) + 1
        raise InputError(
            f"{label}, line {line}: expected text in UTF-8, but it has a zero byte, as UTF-16 has; convert the file to "
            "UTF-8, or remove such bytes"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(label, line, error) from error


def _unpacked(file: BinaryIO, path: Path, label: str) -> bytearray:
    """All of a compressed file; raises InputError if it unpacks to more than any text would."""
    most = _most(path)
    data = bytearray()
    while part := file.read(1 << 20):
        data += part
        if len(data) > most:
            raise _too_much(label)
    return data


def _most(path: Path) -> int:
    """The most unpacked bytes of a compressed file that may be held at a time."""
    return max(_LARGE, _PACKED * path.stat().st_size)


def check_lines(path: Path, label: str) -> None:
    """Check that every line of a file is UTF-8 and that at least one has content, holding one line at a time.

    Readers of JSON let some bytes that are not UTF-8 pass, and fail only when the row is accessed. They hold a whole
    line, or a whole array, so a compressed file in which one of these unpacks to more than any text would is refused.
    Raises InputError if a check fails.
    """
    content = array = False
    most = _most(path) if path.name.lower().endswith(".gz") else None
    number = held = 0
    with open_bytes(path, label) as file:
        while line := file.readline(-1 if most is None else most + 1):
            number += 1
            array = array or (number == 1 and line.startswith(b"["))
            held = held + len(line) if array else len(line)
            if most is not None and held > most:
                raise _too_much(label, "" if array else f", in line {number},")
            try:
                content = bool(line.decode().strip()) or content
            except UnicodeDecodeError as error:
                raise _not_utf8(label, number, error) from error
    if not content:
        raise _empty(label)


def explain_json(path: Path, label: str, column: str | None) -> InputError | None:
    """The first thing wrong with a file of JSON Lines, or their texts, or of one JSON array; None if it is well formed.

    Texts are those of a column, or for None of all columns. It reads the whole file, so it is for files that a reader
    has already refused.
    """
    with open_bytes(path, label) as file:
        first = file.read(1)
        file.seek(0)
        if first == b"[":
            try:
                read_json(file.read())
            except ValueError as error:
                return InputError(
                    f"{label}: expected a JSON array of objects, but it is not valid JSON ({error}); correct it"
                )
            return None
        for number, line in enumerate(file, 1):
            place = f"{label}, line {number}"
            if not line.strip():
                continue
            try:
                value = read_json(line)
            except ValueError as error:
                return InputError(
                    f"{place}: expected one JSON object per line, but it is not valid JSON ({error}); correct or "
                    "remove the line"
                )
            if not isinstance(value, dict):
                return InputError(
                    f'{place}: expected a JSON object such as {{"text": "..."}}, but got '
                    f"{type(value).__name__}; make every line an object"
                )
            for name, text in value.items():
                if column in (None, name) and isinstance(text, str) and _HALF_A_PAIR.search(text):
                    return InputError(
                        f"{place}: expected text in {name!r}, but it has half of a surrogate pair; correct or remove "
                        "the line"
                    )
    return None


def json_rows(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON Lines; raises `ValueError` if it is anything else, such as a JSON array."""
    with open_bytes(path, label) as file:
        for line in file:
            if line.strip():
                if not isinstance(row := read_json(line), dict):
                    raise ValueError("not a row")
                yield row


def _too_much(label: str, where: str = "") -> InputError:
    return InputError(
        f"{label}: expected text, but it unpacks{where} to more than {_PACKED} times its size, beyond "
        f"{_LARGE >> 20} MiB; check what it holds, or unpack it and give the unpacked file"
    )


def _not_utf8(label: str, line: int, error: UnicodeDecodeError) -> InputError:
    byte = error.object[error.start]
    return InputError(f"{label}, line {line}: expected UTF-8, but byte 0x{byte:02x} is not; convert the file to UTF-8")


def _empty(label: str) -> InputError:
    return InputError(f"{label}: expected text, but the file is empty; give a file with text")
