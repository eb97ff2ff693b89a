"""Whether files are still those that they were. Knows their sizes and times alone; reads none of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import final

from reprune.errors import ChangedError


@final
class Unchanged:
    """Files as they were when this was made."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._seen = {file: _look(file) for file in files}

    @property
    def files(self) -> Iterable[Path]:
        return self._seen

    def check(self, *files: Path) -> None:
        """Raise `ChangedError` where one of these files, by default of all, was written to or replaced since.

        Raises:
            OSError: it is gone.
        """
        for file in files or self._seen:
            if _look(file) != self._seen[file]:
                raise ChangedError(
                    f"{file}: was changed or replaced while the model was in use; put the original file back, or start "
                    "again with the model as it is now."
                )


def _look(file: Path) -> tuple[int, int]:
    """What tells a file from the one that was there; not its inode, which a network's disk may number anew."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns
