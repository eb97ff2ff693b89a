"""Runs that share what they have in common compute it once, and give the same bits as each run alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from reprune.doors.api import prune_by_recipe
from reprune.engine import dense, fresh, group_statistics
from reprune.engine.shared import Shared
from reprune.engine.watcher import Watcher
from reprune.math.statistics import Gram
from reprune.model.streams import Stream, stream_bytes
from reprune.planning.layers import resolve_recipe
from tests.packages import install, write_pruner

_RUNGS = ("LR", "BR", "BR+GP", "BR+GP+CR", "auto")


def _prune(model: Path, out: Path, shared: Shared | None, watcher: Watcher | None = None, **options: Any) -> None:
    content = {
        "calibration": "manual",
        "samples": 6,
        "seqlen": 16,
        "device": "cpu",
        "precision": "float32",
        "solver": {"epochs": 1, "batch_size": 3},
        **options,
    }
    prune_by_recipe(resolve_recipe(str(model), content), out, watcher or Watcher(), shared)


def _same(one: Path, other: Path) -> bool:
    files = sorted(file.name for file in one.glob("*.safetensors"))
    assert files == sorted(file.name for file in other.glob("*.safetensors"))
    return all(
        torch.equal(tensor, load_file(other / name)[key])
        for name in files
        for key, tensor in load_file(one / name).items()
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts dense blocks that were run over all samples, and passes that gathered statistics of block 0."""
    counts = {"dense": 0, "statistics": 0}
    compute, gather = dense.DenseStream._compute, group_statistics.gathering

    def counting(stream: dense.DenseStream, block: Any) -> None:
        counts["dense"] += 1
        compute(stream, block)

    @contextmanager
    def gathering(block: Any, groups: Any, pruner: Any, known: Any, *ranks: Any, **alone: bool) -> Iterator[None]:
        before = len(known)
        with gather(block, groups, pruner, known, *ranks, **alone):
            yield
        if block.index == 0:
            counts["statistics"] += len(known) > before

    monkeypatch.setattr(dense.DenseStream, "_compute", counting)
    for module in (group_statistics, fresh):
        monkeypatch.setattr(module, "gathering", gathering)
    return counts


def test_a_shared_run_has_the_bits_of_one_alone(llama: Path, tmp_path: Path, counted: dict[str, int]) -> None:
    with Shared(tmp_path / "shared") as shared:
        for rung in _RUNGS:
            _prune(llama, tmp_path / rung, shared, reconstruct=rung)
        assert counted == {"dense": 3, "statistics": 1}
        _prune(llama, tmp_path / "wanda", shared, pruner="wanda", reconstruct="BR+GP")
        assert counted == {"dense": 3, "statistics": 2}
    assert not (tmp_path / "shared").exists()
    for rung in _RUNGS:
        _prune(llama, tmp_path / f"{rung} alone", None, reconstruct=rung)
        assert _same(tmp_path / rung, tmp_path / f"{rung} alone")
    _prune(llama, tmp_path / "wanda alone", None, pruner="wanda", reconstruct="BR+GP")
    assert _same(tmp_path / "wanda", tmp_path / "wanda alone")
    assert counted == {"dense": 3 + 6 * 3, "statistics": 2 + 6}, "overlapping windows ask for a block once, too"


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"samples": 7},
        {"solver": {"epochs": 1, "batch_size": 2}},
        {"precision": "bfloat16"},
        {"pruner": {"statistics": "first"}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_nothing_is_shared_between_runs_that_differ_in_what_decides_it(
    other: dict[str, Any], llama: Path, tmp_path: Path, counted: dict[str, int]
) -> None:
    with Shared(tmp_path / "shared") as shared:
        _prune(llama, tmp_path / "one", shared, reconstruct="LR")
        _prune(llama, tmp_path / "two", shared, reconstruct="LR", **other)
        assert counted == {"dense": 6, "statistics": 2}
        files = list((tmp_path / "shared").iterdir())
        assert len(files) == 3, "what the first run left is dropped"
    _prune(llama, tmp_path / "alone", None, reconstruct="LR", **other)
    assert _same(tmp_path / "two", tmp_path / "alone")


def test_a_run_that_stopped_in_the_middle_leaves_whole_streams_only(llama: Path, tmp_path: Path) -> None:
    class _Stop(Watcher):
        def phase(self, window: Any, what: str) -> None:
            if window is not None and window.index == 1 and what == "reconstruction":
                raise KeyboardInterrupt

    with Shared(tmp_path / "shared") as shared:
        with pytest.raises(KeyboardInterrupt):
            _prune(llama, tmp_path / "cut", shared, _Stop(), reconstruct="BR+GP")
        assert sorted(shared.dense) == [0, 1]
        _prune(llama, tmp_path / "whole", shared, reconstruct="BR+GP")
    _prune(llama, tmp_path / "alone", None, reconstruct="BR+GP")
    assert _same(tmp_path / "whole", tmp_path / "alone")


def test_streams_are_not_shared_where_they_would_fill_the_disk(
    llama: Path, tmp_path: Path, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reprune.engine.shared._SHARE_OF_FREE_DISK", 0.0)
    with Shared(tmp_path / "shared") as shared:
        for name in ("one", "two"):
            _prune(llama, tmp_path / name, shared, reconstruct="BR+GP")
        assert not shared.dense
    assert counted == {"dense": 6, "statistics": 1}
    assert _same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("there", "left"), [(0, 4), (3, 1)])
def test_streams_are_shared_where_those_to_come_take_up_to_half_of_what_a_result_leaves_free(
    there: int, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, computed = (2, 3, 4), cast("Stream", None)
    for less in (0, 1):
        free = 1000 + 2 * left * stream_bytes(shape) - less
        monkeypatch.setattr("reprune.engine.shared.shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with Shared(tmp_path / "work" / "shared") as shared:
            shared.dense = dict.fromkeys(range(there), computed)
            shared.make_room(shape, 4, 1000)
            assert (shared.new_stream() is None) is (less == 1)
        assert shared.new_stream() is None
        assert not list((tmp_path / "work").iterdir())


def test_streams_before_the_one_that_is_read_take_no_memory(tmp_path: Path) -> None:
    resting: list[int] = []
    with Shared(tmp_path / "shared") as shared:
        streams: Any = {index: SimpleNamespace(rest=lambda index=index: resting.append(index)) for index in range(4)}
        shared.dense = streams
        shared.rest_before(2)
    assert resting == [0, 1]


def test_statistics_gathered_group_after_group_are_not_shared(
    llama: Path, tmp_path: Path, counted: dict[str, int]
) -> None:
    with Shared(tmp_path / "shared") as shared:
        for name in ("one", "two"):
            _prune(llama, tmp_path / name, shared, reconstruct="LR", pruner={"sequential": True})
        assert not shared.statistics
    assert _same(tmp_path / "one", tmp_path / "two")


NORMS = """
from reprune.math.pruner import Pruned, Pruner
from reprune.math.statistics import Statistics


class Norms(Statistics):
    def __init__(self, columns, device, p):
        super().__init__(columns, device)
        self.p, self.sums = p, 0.0

    def _accumulate(self, X):
        self.sums = self.sums + X.abs().pow(self.p).sum(0)


class ByNorm(Pruner):
    def __init__(self, p=1.0):
        self.p = p

    def statistics(self, columns, device):
        return Norms(columns, device, self.p)

    def _prune(self, weights, statistics, pattern):
        norms = statistics.sums ** (1 / self.p)
        masks = [pattern.keep(weight.abs() * norms, "row") for weight in weights]
        return [Pruned(weight * mask, mask) for weight, mask in zip(weights, masks)]


def other():
    return ByNorm(4.0)
"""


@pytest.mark.parametrize(("pruner", "settings"), [("other", {}), ("one", {"p": 4.0})], ids=["name", "settings"])
def test_a_packages_pruner_takes_no_statistics_of_another(
    pruner: str, settings: dict[str, float], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(write_pruner(tmp_path / "brought", NORMS, one="ByNorm", other="other"), monkeypatch)
    how = {"pruner": {"name": pruner, "settings": settings}, "reconstruct": "LR"}
    with Shared(tmp_path / "shared") as shared:
        _prune(llama, tmp_path / "first", shared, pruner="one", reconstruct="LR")
        _prune(llama, tmp_path / "second", shared, **how)
    _prune(llama, tmp_path / "alone", None, **how)
    assert _same(tmp_path / "second", tmp_path / "alone")
    assert not _same(tmp_path / "second", tmp_path / "first")


def test_a_pruner_leaves_statistics_as_they_are(llama: Path, tmp_path: Path) -> None:
    with Shared(tmp_path / "shared") as shared:
        _prune(llama, tmp_path / "one", shared, reconstruct="LR")
        (kept,) = shared.statistics.values()
        grams = [statistics for statistics in kept if isinstance(statistics, Gram)]
        before = [gram.matrix.clone() for gram in grams]
        assert len(before) == 4
        _prune(llama, tmp_path / "two", shared, reconstruct="LR", sparsity=0.7)
        assert all(torch.equal(gram.matrix, was) for gram, was in zip(grams, before, strict=True))


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "old.stream").write_bytes(b"1")
    with Shared(tmp_path / "shared"):
        assert not (tmp_path / "shared").exists()
