"""A run holds in memory what it needs, and no longer than it needs it."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from reprune.engine.watcher import Watcher
from reprune.model.block import Block
from reprune.model.decoder import Decoder
from reprune.model.garbage import no_search
from reprune.planning.schedule import Window
from tests.engine.quick import prune


def test_checkpointing_keeps_no_more_than_what_enters_each_block(llama: Path, tmp_path: Path) -> None:
    """The twin: bytes that autograd holds on to during a window of three blocks."""

    def held(*settings: str) -> int:
        most, now = 0, 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal most, now
            now += tensor.nbytes
            most = max(most, now)
            return tensor

        def unpack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal now
            now -= tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            out = tmp_path / str(len(settings))
            prune(llama, out, "schedule.size=3", *settings, reconstruct="BR+GP", epochs=1, samples=3)
        return most

    assert held("solver.checkpointing=true") < held()


@pytest.mark.parametrize("name", ["owl", "by-error"])
def test_a_block_is_gone_whose_bearing_is_measured_before_the_next_is_loaded(
    llama: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []
    at_load: list[int] = []
    load = Decoder.load

    def watched(self: Decoder, index: int, *args: Any) -> Block:
        at_load.append(sum(module() is not None for module in loaded))
        block = load(self, index, *args)
        loaded.append(weakref.ref(block.module))
        return block

    told: list[tuple[str, int]] = []

    class Looking(Watcher):
        def phase(self, window: Window | None, what: str) -> None:
            if what.startswith("measuring"):
                told.append((what, len(loaded)))

    monkeypatch.setattr(Decoder, "load", watched)
    with no_search():
        prune(llama, tmp_path / "out", f"allocation={name}", reconstruct="LR", watcher=Looking())
    assert told == [(f"measuring the sensitivity of block {index}", index) for index in range(3)], "before it is loaded"
    assert at_load[:3] == [0, 0, 0]


@pytest.mark.parametrize(
    ("rung", "settings"),
    [("LR", []), ("BR+GP", []), ("BR+GP+CR", []), ("BR", ["schedule.size=2", "schedule.stride=1"])],
)
def test_a_block_is_in_memory_while_a_window_needs_it_and_once(
    llama: Path, rung: str, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[int, weakref.ref[torch.nn.Module]]] = []
    load = Decoder.load

    def watched(self: Decoder, index: int, *args: Any) -> Block:
        block = load(self, index, *args)
        loaded.append((index, weakref.ref(block.module)))
        return block

    class Looking(Watcher):
        windows = 0

        def phase(self, window: Window | None, what: str) -> None:
            if window is None:
                return
            held = sorted(index for index, module in loaded if module() is not None)
            if what == "targets":
                self.windows += 1
                assert set(held) <= {*window.blocks}
            else:  # the dense blocks are no longer needed
                assert held == list(window.blocks)

    monkeypatch.setattr(Decoder, "load", watched)
    looking = Looking()
    with no_search():  # what only a reference cycle holds counts as held
        record = prune(llama, tmp_path / "out", *settings, reconstruct=rung, watcher=looking)
    assert looking.windows == len(record["windows"]) > 1
