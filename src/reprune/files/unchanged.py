"""Checks that files have not changed, by their sizes and modification times; reads none of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import final

from reprune.errors import ChangedError


@final
class Unchanged:
    """Files as they were when this object was made."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._seen = {file: _look(file) for file in files}

    @property
    def files(self) -> Iterable[Path]:
        return self._seen

    def check(self, *files: Path) -> None:
        """Check some of the files, by default all.

        Raises:
            ChangedError: a file was written to or replaced since.
            OSError: a file is gone.
        """
        for file in files or self._seen:
            if _look(file) != self._seen[file]:
                raise ChangedError(
                    f"{file}: was changed or replaced while the model was in use; put the original file back, or start "
                    "again with the model as it is now."
                )


def _look(file: Path) -> tuple[int, int]:
    """What identifies a file's version; not its inode, which a network file system may change."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns
