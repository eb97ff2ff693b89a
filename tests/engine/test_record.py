"""A record says what was done, in which measure, and of the device that the run was on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reprune.engine.record import forget_peak_memory, machine, peak_memory_bytes, window_record
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Epoch, Errors, Fit
from reprune.math.standardization import FeatureStatistics
from reprune.planning.layers import resolve_recipe
from reprune.planning.schedule import windows

CARDS = ["Tesla T4", "A100"]


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What two GPUs, of which the first is current, have held at most."""
    held = [5, 9_600_000_000]

    def reset(device: str | None = None) -> None:
        held[_number(device)] = 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: CARDS[_number(device)])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: held[_number(device)])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    return held


def _number(device: str | None) -> int:
    return 0 if device is None else torch.device(device).index or 0


@pytest.mark.parametrize(
    ("device", "name", "most", "left"),
    [
        ("cuda", "Tesla T4", 5, [0, 9_600_000_000]),
        ("cuda:1", "A100", 9_600_000_000, [5, 0]),
        ("cpu", "cpu", 0, [5, 9_600_000_000]),
    ],
)
def test_it_is_the_one_that_was_named(device: str, name: str, most: int, left: list[int], peaks: list[int]) -> None:
    assert machine(device)["device"] == name
    assert peak_memory_bytes(device)["device"] == most
    forget_peak_memory(device)
    assert peaks == left


def test_a_gpu_that_nothing_was_done_on_has_no_peak_to_forget(
    peaks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    forget_peak_memory("cuda:1")  # PyTorch refuses it of a device that it has not begun with
    assert peaks == [5, 9_600_000_000]


def _window(
    kept: int, *, alone: int = 0, loss: str = "squared", guarded: bool = True, planned: int = 4
) -> dict[str, Any]:
    """The record of a window of blocks 0 and 1 after three epochs, so many of them of its last block alone.

    Errors before are 1 to 6, those after 11 to 16; those of an epoch 0.5, 0.3, 0.4, as the guard sees them tenfold.
    """
    before = Errors(Error(1.0, 2.0, 3.0), Error(4.0, 5.0, 6.0))
    after = Errors(Error(11.0, 12.0, 13.0), Error(14.0, 15.0, 16.0))
    epochs = tuple(
        Epoch(number, number / 10, error, 10 * error, 0.02, 0.2, number <= alone)
        for number, error in enumerate((0.5, 0.3, 0.4), 1)
    )
    fit = Fit(before, epochs, planned, kept, guarded, 0.3)
    solver = resolve_recipe("model", {"reconstruct": "BR+GP+CR"}, settings=[f"solver.loss={loss}"]).solver
    ridges = {1: {("a", "b"): 0.1, ("c",): None}}
    features = FeatureStatistics(1.0, 0.25, torch.ones(2))
    return window_record(windows(3, 2, 1)[1], fit, after, solver, features, ridges, ["of pruning"], 1.23456)


def test_a_windows_errors_are_those_before_and_after_in_the_measure_of_its_loss() -> None:
    for loss, calibration, heldout in (
        ("squared", (2.0, 12.0), (5.0, 15.0)),
        ("standardized", (3.0, 13.0), (6.0, 16.0)),
    ):
        found = _window(2, loss=loss)
        assert found["loss"] == loss
        for key, (before, after) in {
            "calibration_error": (1.0, 11.0),
            "heldout_error": (4.0, 14.0),
            "relative_calibration_error": calibration,
            "relative_heldout_error": heldout,
            "standardized_heldout_error": (6.0, 16.0),
        }.items():
            assert found[key] == {"before": before, "after": after}
        assert found["guard"]["relative_heldout_error"] == {"last": 0.4, "kept": 0.3}
        assert found["guard"]["standardized_heldout_error"] == {"last": 4.0, "kept": 3.0}
        start = _window(0, loss=loss)["guard"]
        assert start["relative_heldout_error"]["kept"] == heldout[0]
        assert start["standardized_heldout_error"]["kept"] == 6.0
    assert found["largest_feature"] == 0.25
    assert found["relative_lr"] == 0.3
    assert found["notes"] == ["of pruning"]
    assert found["least_squares"] == [
        {"block": 1, "linears": ["a", "b"], "ridge": 0.1},
        {"block": 1, "linears": ["c"], "ridge": None},
    ]
    assert found["seconds"] == 1.235


def test_an_epoch_names_the_blocks_that_it_moved_and_both_its_errors() -> None:
    found = _window(3, alone=1)["epochs"]
    assert [epoch["blocks"] for epoch in found] == [[1], [0, 1], [0, 1]]
    assert [epoch["relative_calibration_error"] for epoch in found] == [0.1, 0.2, 0.3]
    assert [epoch["relative_heldout_error"] for epoch in found] == [0.5, 0.3, 0.4]
    assert [epoch["standardized_heldout_error"] for epoch in found] == [5.0, 3.0, 4.0]
    assert {(epoch["lr"], epoch["relative_lr"]) for epoch in found} == {(0.02, 0.2)}


@pytest.mark.parametrize(
    ("kept", "alone", "blocks"), [(0, 0, []), (1, 0, [0, 1]), (1, 2, [1]), (2, 2, [1]), (3, 2, [0, 1]), (3, 3, [1])]
)
def test_reconstructed_are_the_blocks_that_were_moved_up_to_the_epoch_kept(
    kept: int, alone: int, blocks: list[int]
) -> None:
    assert _window(kept, alone=alone)["reconstructed"] == blocks


def test_what_the_guard_did_is_on_record() -> None:
    for kept, planned, stopped, restored in ((3, 3, False, False), (2, 3, False, True), (3, 9, True, False)):
        found = _window(kept, planned=planned)["guard"]
        assert (found["planned_epochs"], found["run_epochs"]) == (planned, 3)
        assert (found["stopped_early"], found["restored"]) == (stopped, restored)
    assert [_window(3, guarded=on)["guard"]["on"] for on in (True, False)] == [True, False]
