"""What a record says of a device is said of the one that the run was on, which need not be PyTorch's current one."""

from __future__ import annotations

import pytest
import torch

from reprune.engine.record import forget_peak_memory, machine, peak_memory_bytes

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
