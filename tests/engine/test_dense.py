"""The dense model's stream is computed once, from each block's inputs, and kept as long as something reads it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reprune.engine.dense import DenseStream
from reprune.engine.shared import Shared
from reprune.model.streams import Stream, StreamStore

SHAPE = (5, 2, 3)


class _Ran:
    """Records the blocks that are passed; each adds 10 * its index + 1, and each sample's number, to states."""

    def __init__(self) -> None:
        self.blocks: list[int] = []

    def __call__(self, block: Any, entering: Stream, after: Stream) -> None:
        self.blocks.append(block.index)
        states = entering.read(slice(0, 5))
        after.write(slice(0, 5), states + 10 * block.index + 1 + torch.arange(5.0)[:, None, None])


def _block(index: int) -> Any:
    return SimpleNamespace(index=index)


def _dense(store: StreamStore, run: _Ran, shared: Shared | None = None) -> DenseStream:
    embedded = store.new(SHAPE)
    embedded.write(slice(0, 5), torch.zeros(SHAPE))
    return DenseStream(embedded, store, run, shared)


def _values(stream: Stream) -> list[float]:
    return [float(one) for one in stream.read(slice(0, 5))[:, 0, 0]]


def test_a_block_is_passed_once_and_reads_what_the_one_before_puts_out(tmp_path: Path) -> None:
    run = _Ran()
    with StreamStore(2**20, tmp_path) as store:
        dense = _dense(store, run)
        assert _values(dense.before(0)) == [0.0] * 5
        assert _values(dense.after(0, _block)) == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert _values(dense.after(1, _block)) == [12.0, 14.0, 16.0, 18.0, 20.0]
        assert dense.after(0, _block) is dense.before(1)
        assert run.blocks == [0, 1]


def test_what_entered_blocks_that_are_passed_is_freed_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[Stream] = []
    monkeypatch.setattr(StreamStore, "free", lambda self, stream: freed.append(stream))
    with StreamStore(2**20, tmp_path) as store:
        dense = _dense(store, _Ran())
        streams = [dense.before(0), *(dense.after(index, _block) for index in range(3))]
        dense.forget_before(1)
        assert freed == streams[:1]
        dense.forget_before(2)
        assert freed == streams[:2]
        assert [dense.before(2), dense.before(3)] == streams[2:]


def test_what_is_shared_is_not_computed_anew_and_rests_behind_the_frontier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[Stream] = []
    monkeypatch.setattr(Stream, "rest", lambda self: rested.append(self))
    runs = _Ran(), _Ran()
    with StreamStore(2**20, tmp_path / "own") as store, Shared(tmp_path / "shared") as shared:
        shared.make_room(SHAPE, 3, 0)
        first, second = (_dense(store, run, shared) for run in runs)
        found = [first.after(index, _block) for index in range(3)]
        assert [second.after(index, _block) for index in range(3)] == found
        assert (second.before(3), runs[1].blocks) == (found[2], [])
        first.forget_before(2)
        assert rested == found[:1], "what enters block 2 is read"
