"""No sample passes through a block more often than it must."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reprune.engine import allocate
from reprune.engine.compare import compare
from reprune.engine.frontier import Frontier
from reprune.engine.refitting import Refitting
from reprune.model.block import Block, Precision
from reprune.model.decoder import Decoder
from reprune.model.streams import Stream, StreamStore
from tests import tiny
from tests.casts import Casts
from tests.engine.quick import QUICK, prune

CALIBRATION, HELDOUT, EPOCHS = QUICK["samples"], 1, QUICK["epochs"]
ALL = CALIBRATION + HELDOUT


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """By block: how many samples passed through it, or through its dense twin, without gradients."""
    found: Counter[int] = Counter()
    run = Block.run

    def counted(self: Block, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            found[self.index] += len(states)
        return run(self, states, *args, **kwargs)

    monkeypatch.setattr(Block, "run", counted)
    return found


# The dense stream; one sample to find which linears share inputs; statistics; after the fit; and the probe.
OF_ALL_RUNGS = ALL + 1 + CALIBRATION + ALL + 1
# Before the fit, and after each epoch.
OF_A_FIT = ALL + EPOCHS * HELDOUT
# One block of each kind is examined before the run; here all are of one kind.
SURVEYED = Counter({0: 1})


def test_a_window_of_one_block_passes_it_for_the_errors_before_and_after(
    llama: Path, tmp_path: Path, passed: Counter[int]
) -> None:
    record = prune(llama, tmp_path / "out", reconstruct="BR+GP")
    blocks = range(len(record["blocks"]))
    assert passed - SURVEYED == dict.fromkeys(blocks, OF_ALL_RUNGS + OF_A_FIT)


def test_statistics_and_targets_of_a_local_teacher_come_of_one_pass(
    llama: Path, tmp_path: Path, passed: Counter[int]
) -> None:
    record = prune(llama, tmp_path / "out", reconstruct="BR")
    blocks = range(len(record["blocks"]))
    assert passed - SURVEYED == dict.fromkeys(blocks, OF_ALL_RUNGS - CALIBRATION + ALL + OF_A_FIT)


def test_of_a_block_that_stays_dense_no_statistics_are_gathered(
    llama: Path, tmp_path: Path, passed: Counter[int]
) -> None:
    record = prune(llama, tmp_path / "out", reconstruct="BR+GP", exclude=["1.*"])
    expected = Counter(dict.fromkeys(range(len(record["blocks"])), OF_ALL_RUNGS + OF_A_FIT))
    assert passed - SURVEYED == expected - Counter({1: CALIBRATION})


def test_a_block_without_an_error_is_not_fitted(llama: Path, tmp_path: Path, passed: Counter[int]) -> None:
    record = prune(llama, tmp_path / "out", reconstruct="BR+GP", exclude=["0.*"])
    assert [len(window["epochs"]) for window in record["windows"]] == [0, EPOCHS, EPOCHS]
    assert passed[0] == OF_ALL_RUNGS - CALIBRATION + ALL + SURVEYED[0], "the errors before"


def test_what_windows_that_overlap_have_in_common_is_passed_once(
    llama: Path, tmp_path: Path, passed: Counter[int]
) -> None:
    record = prune(llama, tmp_path / "out", reconstruct="BR+GP+CR")
    blocks = range(len(record["blocks"]))
    # Each block is in a second window, together with the next one; until that is fitted, the block's outputs are those
    # that the first window ended with. The last block's second window has no other block, so it is run for the errors
    # before the fit.
    again = EPOCHS * HELDOUT + ALL
    expected = Counter(dict.fromkeys(blocks, OF_ALL_RUNGS + OF_A_FIT + again))
    assert passed - SURVEYED == expected + Counter({blocks[-1]: ALL})


def test_what_windows_targets_and_blocks_errors_have_in_common_is_read_once_a_batch(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window's targets are what its last block puts out in the dense model."""
    advance, read, found = Frontier.advance, Stream.read, list[list[Any]]()

    def advanced(self: Frontier, *args: Any) -> Any:
        found.append([])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stream, "read", lambda *of: found[-1].append(of[:2]) or read(*of))  # type: ignore[func-returns-value]
            return advance(self, *args)

    monkeypatch.setattr(Frontier, "advance", advanced)
    prune(llama, tmp_path / "out", reconstruct="BR+GP")
    batches = -(-CALIBRATION // QUICK["batch_size"]) + HELDOUT
    assert [len(reads) for reads in found] == [2 * batches] * 3


@pytest.mark.parametrize(("method", "reads", "distilled"), [("advance", 2, 0), ("repeat", 1, 1)])
def test_the_next_batch_is_read_before_the_outputs_of_one_are_written(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, reads: int, distilled: int
) -> None:
    """Writing waits for a GPU, which then has its next states at hand."""
    passing, found = getattr(Frontier, method), list[list[tuple[str, int]]]()

    def noted(name: str) -> Any:
        function = getattr(Stream, name)

        def call(self: Stream, samples: slice, *given: Any, **more: Any) -> Any:
            found[-1].append((name, samples.start))
            return function(self, samples, *given, **more)

        return call

    def passed(self: Frontier, *args: Any) -> Any:
        found.append([])
        with pytest.MonkeyPatch.context() as patch:
            for name in ("read", "write"):
                patch.setattr(Stream, name, noted(name))
            return passing(self, *args)

    monkeypatch.setattr(Frontier, method, passed)
    prune(llama, tmp_path / "out", f"distill.blocks={distilled}", "distill.epochs=1", reconstruct="BR+GP")
    assert found
    for did in found:
        written = [place for place, (name, _) in enumerate(did) if name == "write"]
        following = [start for name, start in did if name == "write"][1:]
        assert len(following) > 1
        for before, place, start in zip([-1, *written], written, following, strict=False):
            assert not start or did[before + 1 : place].count(("read", start)) == reads


def test_streams_are_freed_as_windows_go_on(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    at_end: list[int] = []
    free, close = StreamStore.free, StreamStore.close

    def watched(self: StreamStore, stream: Any) -> None:
        free(self, stream)
        left.append(len(self._streams))

    def closing(self: StreamStore) -> None:
        at_end.append(len(self._streams))
        close(self)

    monkeypatch.setattr(StreamStore, "free", watched)
    monkeypatch.setattr(StreamStore, "close", closing)
    prune(llama, tmp_path / "out", reconstruct="BR+GP+CR")
    assert left[-1] == 0
    assert at_end == [2], "the student's, and what the dense model's last block puts out"
    assert max(left) <= 5, "the student's, the dense model's before, between and after two blocks, one for statistics"


@pytest.mark.parametrize(
    ("place", "name", "setting"),
    [
        (Frontier, "routes", "solver.routing=teacher"),
        (Refitting, "gather", "solver.start=least-squares"),
        (allocate, "_curve", "allocation=by-error"),
    ],
)
def test_weights_are_cast_as_often_for_many_batches_as_for_one(
    place: Any, name: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passing = tiny.save("mixtral", tmp_path / "model"), getattr(place, name)
    found: dict[int, Casts] = {}
    for batch in (2, 8):
        found[batch] = Casts(lambda one: isinstance(one, nn.Parameter))

        def counted(*args: Any, casts: Casts = found[batch]) -> Any:
            with casts:
                return passing(*args)

        monkeypatch.setattr(place, name, counted)
        settings = "precision=bfloat16", f"solver.micro_batch_size={batch}", setting
        prune(model, tmp_path / f"{batch}", *settings, reconstruct="BR+GP", batch_size=8, heldout="manual=8", epochs=1)
    assert found[2].count == found[8].count > 0


def test_weights_are_cast_once_for_all_batches_of_a_comparison(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = Block.run, Casts(lambda one: isinstance(one, nn.Parameter))

    def counted(*args: Any) -> torch.Tensor:
        with found:
            return run(*args)

    monkeypatch.setattr(Block, "run", counted)
    model = Decoder(llama, precision=Precision(torch.bfloat16))
    compare(model, model, torch.arange(32).view(4, 8), 1, 10**9, tmp_path)
    assert found.count == 2 * sum(len(model.load(index).linears) for index in range(len(model)))
