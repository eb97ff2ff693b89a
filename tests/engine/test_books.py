"""Only the first process accesses the ledger and the result; it tells the others what it has read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reprune.engine import books as module
from reprune.engine.books import Books
from reprune.math.ranks import ALONE


class _Rank:
    """One of two ranks; the second receives what the first has told so far."""

    alone = False

    def __init__(self, number: int, told: list[Any]) -> None:
        self.number, self.first = number, number == 0
        self._told = told

    def tell(self, value: Any) -> Any:
        if not self.first:
            return self._told.pop(0)
        self._told.append(value)
        return value

    tell_tensors = tell


class _Kept:
    """A ledger and a result in one, which records what is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[tuple[Any, ...]] = []

    def samples(self) -> dict[str, torch.Tensor]:
        return {"calibration": torch.tensor([[1, 2]]), "heldout": torch.tensor([[3, 4]])}

    def lines(self) -> list[dict[str, Any]]:
        return [{"blocks": []}, {"blocks": [{"index": 0}]}, {"blocks": [{"index": 1}, {"index": 2}]}]

    def allocation(self) -> list[float]:
        return [0.5, 0.6]

    def open_tensors(self) -> dict[str, str]:
        return {"2.weight": "open"}

    def read_block(self, index: int) -> dict[str, int]:
        return {"weight": index}

    def staging_folder(self) -> Path:
        return self.folder / "staged"

    def write_block(self, *given: Any) -> dict[str, str]:
        self.written.append(given)
        return {"shard": "hash"}

    def keep_allocation(self, *given: Any) -> None:
        self.written.append(given)

    def commit(self, *given: Any) -> None:
        self.written.append(given)


@pytest.fixture
def kept(tmp_path: Path) -> _Kept:
    return _Kept(tmp_path)


@pytest.fixture
def both(kept: _Kept) -> list[Books]:
    """The books of the first rank, and of another rank, which fails if it accesses its ledger or result."""
    told: list[Any] = []
    nothing: Any = SimpleNamespace(folder=kept.folder)
    found: list[Any] = [(kept, kept, _Rank(0, told)), (nothing, nothing, _Rank(1, told))]
    return [Books(*one) for one in found]


def test_all_know_what_the_first_has_read(both: list[Books], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_blocks", lambda tensors, decoder: (tensors, decoder))
    decoder: Any = "decoder"
    for books in both:
        assert [one.tolist() for one in books.samples()] == [[[1, 2]], [[3, 4]]]
        assert books.done() == 3
        assert books.retired(2) == {"weight": 2}
        assert books.open_blocks(decoder) == ({"2.weight": "open"}, "decoder")
        assert books.allocation() == [0.5, 0.6]
        assert books.block_records() == [{"index": 0}, {"index": 1}, {"index": 2}]


def test_the_first_alone_writes(both: list[Books], kept: _Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tensors_of", lambda blocks: {blocks[0]: "its tensors"})
    window: Any = SimpleNamespace(index=4)
    still_open: Any = ["block 4"]
    for books, written in zip(both, ({"shard": "hash"}, {}), strict=True):
        assert books.write_block(3, {}) == written
        assert books.stage_block(5, {}) == written
        books.keep_allocation([0.1])
        books.commit(window, {"window": {}}, {"shard": "hash"}, still_open)
    assert kept.written == [
        (3, {}),
        (5, {}, kept.folder / "staged"),
        ([0.1],),
        (4, {"window": {}}, {"shard": "hash"}, {"block 4": "its tensors"}),
    ]


def test_nobody_goes_on_before_a_window_is_finished(both: list[Books], kept: _Kept) -> None:
    window: Any = SimpleNamespace(index=4)
    with pytest.raises(IndexError):  # the first has not told it yet
        both[1].commit(window, {}, {}, [])
    both[0].commit(window, {}, {}, [])
    both[1].commit(window, {}, {}, [])


def test_each_has_streams_of_its_own_and_the_first_clears_what_any_has_left(both: list[Books], kept: _Kept) -> None:
    store: Any = kept
    assert Books(store, store, ALONE).streams == kept.folder / "streams"
    first, second = both
    assert [books.streams.name for books in both] == ["rank-0", "rank-1"]
    left = kept.folder / "streams" / "rank-7"
    for folder in (first.streams, second.streams, left):
        folder.mkdir(parents=True)
    second.clear_streams()
    assert first.streams.exists() and left.exists() and not second.streams.exists()
    first.clear_streams()
    assert not (kept.folder / "streams").exists()
    first.clear_streams()
