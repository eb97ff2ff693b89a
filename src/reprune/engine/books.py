"""A run's progress as each of its processes sees it: the first keeps it on disk and tells the others."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from reprune.engine.ledger import Ledger
from reprune.engine.open_blocks import open_blocks, tensors_of
from reprune.engine.result import Result
from reprune.engine.window import PrunedBlock
from reprune.math.ranks import Ranks
from reprune.model.decoder import Decoder
from reprune.planning.schedule import Window

_STREAMS = "streams"


@final
class Books:
    """The ledger and the result of a run, read and written by its first rank."""

    def __init__(self, ledger: Ledger, result: Result, ranks: Ranks) -> None:
        """On the first rank the ledger has been entered and begun; the other ranks must not read it."""
        self._ledger = ledger
        self._result = result
        self.ranks = ranks
        # Each rank has its own files, even if all ranks share a disk.
        self.streams = ledger.folder / _STREAMS / ("" if ranks.alone else f"rank-{ranks.number}")

    def samples(self) -> tuple[Tensor, Tensor]:
        """The token ids of all calibration and of all held-out samples."""
        told = self.ranks.tell_tensors(self._ledger.samples() if self.ranks.first else None)
        return told["calibration"], told["heldout"]

    def done(self) -> int:
        """How many windows are finished."""
        return int(self.ranks.tell(len(self._ledger.lines()) if self.ranks.first else 0))

    def retired(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block that has been written."""
        return self.ranks.tell_tensors(self._result.read_block(index) if self.ranks.first else None)

    def open_blocks(self, decoder: Decoder) -> list[PrunedBlock]:
        """The blocks that the last finished window left open."""
        left = self._ledger.open_tensors() if self.ranks.first else None
        return open_blocks(self.ranks.tell_tensors(left), decoder)

    def allocation(self) -> list[float] | None:
        """The sparsities of all blocks, or None if none have been kept."""
        kept: list[float] | None = self.ranks.tell(self._ledger.allocation() if self.ranks.first else None)
        return kept

    def keep_allocation(self, shares: Sequence[float]) -> None:
        """Store the sparsities of all blocks, durably."""
        if self.ranks.first:
            self._ledger.keep_allocation(shares)

    def write_block(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Write a block's shard, durably; returns its file's name and SHA-256."""
        return self._result.write_block(index, tensors) if self.ranks.first else {}

    def stage_block(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Write a block that was fitted once more beside the ledger; its old shard stays until the step is committed.

        Returns what `write_block` does.
        """
        return self._result.write_block(index, tensors, self._ledger.staging_folder()) if self.ranks.first else {}

    def block_records(self) -> list[dict[str, Any]]:
        """The records of all retired blocks."""
        lines = self._ledger.lines() if self.ranks.first else []
        records: list[dict[str, Any]] = self.ranks.tell([block for line in lines for block in line["blocks"]])
        return records

    def commit(
        self,
        window: Window,
        entry: Mapping[str, Any],
        written: Mapping[str, str],
        still_open: Sequence[PrunedBlock],
    ) -> None:
        """Record a window as finished; no rank continues before that is durable."""
        if self.ranks.first:
            self._ledger.commit(window.index, entry, written, tensors_of(still_open))
        self.ranks.tell(window.index)

    def clear_streams(self) -> None:
        """Remove stream files left behind by this rank or by processes that were killed.

        The first rank removes those of all ranks: call this before it tells them `samples`, or when all is done.
        """
        shutil.rmtree(self._ledger.folder / _STREAMS if self.ranks.first else self.streams, ignore_errors=True)
