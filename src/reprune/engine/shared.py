"""What runs of one model on the same samples have in common, computed once for all cells of a study.

That is the dense model's stream after each block, and the statistics of block 0, whose inputs no pruning has changed.
It lives as long as this process; the streams are in files of a folder that no other process reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Hashable
from pathlib import Path
from typing import Self, final

from reprune.math.statistics import Statistics
from reprune.model.streams import Shape, Stream, StreamStore, stream_bytes

_SHARE_OF_FREE_DISK = 0.5


@final
class Shared:
    """A context manager: its files are removed at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key: Hashable = None
        self._store = StreamStore(0, folder)
        self._shape: Shape | None = None  # None: no more streams are shared
        self.dense: dict[int, Stream] = {}  # by block: its complete outputs in the dense model
        self.statistics: dict[Hashable, list[Statistics]] = {}  # of block 0 (see `group_statistics.Known`)

    def serve(self, key: Hashable) -> None:
        """Begin a run; drop everything that was computed under another key.

        Args:
            key: all that determines the dense stream and the statistics: model, samples, batches, precision, device.
        """
        if key != self._key:
            self.clear()
            self._key = key

    def make_room(self, shape: Shape, blocks: int, result: int) -> None:
        """Set the shape of a stream, (samples, tokens, hidden), and how many there will be in all.

        If those still to come would take more than half of the disk that a result of `result` bytes leaves free, no
        more streams are shared.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        left = (blocks - len(self.dense)) * stream_bytes(shape)
        free = shutil.disk_usage(self._folder).free - result
        self._shape = shape if left <= _SHARE_OF_FREE_DISK * free else None

    def new_stream(self) -> Stream | None:
        """A stream for the outputs of a dense block, or None if no more streams are shared."""
        return self._store.new(self._shape) if self._shape is not None else None

    def rest_before(self, index: int) -> None:
        """Unmap the dense streams of all blocks before this one, which are not read for now, from memory."""
        for stream in (stream for block, stream in self.dense.items() if block < index):
            stream.rest()

    def clear(self) -> None:
        """Drop everything."""
        self._store.close()
        self._shape = None
        self.dense, self.statistics = {}, {}
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.clear()  # files left behind by a process that was killed
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
