"""Peak memory is the host's and the named device's since the last reset; resident memory is what is held now."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reprune.engine import peak_memory
from reprune.engine.peak_memory import forget_peak_memory, peak_memory_bytes, resident_bytes
from tests.engine.quick import prune


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The peak memory of two GPUs, of which the first is the current device."""
    held = [5, 9_600_000_000]

    def reset(device: str | None = None) -> None:
        held[_number(device)] = 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: held[_number(device)])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    return held


def _number(device: str | None) -> int:
    return 0 if device is None else torch.device(device).index or 0


@pytest.mark.parametrize(
    ("device", "most", "left"),
    [
        ("cuda", 5, [0, 9_600_000_000]),
        ("cuda:1", 9_600_000_000, [5, 0]),
        ("cpu", 0, [5, 9_600_000_000]),
    ],
)
def test_the_devices_peak_is_of_the_one_that_was_named(
    device: str, most: int, left: list[int], peaks: list[int]
) -> None:
    assert peak_memory_bytes(device)["device"] == most
    forget_peak_memory(device)
    assert peaks == left


def test_a_gpu_that_nothing_was_done_on_has_no_peak_to_forget(
    peaks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    forget_peak_memory("cuda:1")  # PyTorch refuses to reset the peak before CUDA is initialized
    assert peaks == [5, 9_600_000_000]


def test_the_hosts_peak_is_that_since_it_was_forgotten_or_where_none_is_told_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = "VmPeak:\t    9999 kB\nVmHWM:\t    1234 kB\nVmRSS:\t     77 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: status)
    assert peak_memory_bytes("cpu")["host"] == 1234 * 1024

    def hidden(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", hidden)
    monkeypatch.setattr(Path, "write_text", hidden)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=55))
    for system, expected in (("linux", 55 * 1024), ("darwin", 55)):
        monkeypatch.setattr(sys, "platform", system)
        assert peak_memory_bytes("cpu")["host"] == expected
    forget_peak_memory("cpu")


def test_a_peak_is_forgotten_when_what_was_held_has_been_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(peak_memory, "collect_models", lambda: done.append("models"))
    monkeypatch.setattr(peak_memory, "trim_heap", lambda: done.append("heap"))
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: done.append((str(path), text)))
    forget_peak_memory("cpu")
    assert done == ["models", "heap", ("/proc/self/clear_refs", "5")]


def test_a_run_forgets_the_peak_of_what_was_before_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr("reprune.engine.run.forget_peak_memory", forgotten.append)
    prune(llama, tmp_path / "out", pruner="magnitude", reconstruct="LR")
    assert forgotten == ["cpu"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux counts a process's pages")
def test_what_the_process_takes_is_counted_in_the_pages_of_this_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = resident_bytes()
    assert plain > 10**7
    pages = os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 16 * pages}[name])
    assert resident_bytes() == pytest.approx(16 * plain, rel=0.1)


def test_it_is_the_most_that_the_process_has_taken_where_the_system_does_not_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = resident_bytes()

    def hidden(path: Path, *arguments: Any, **settings: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", hidden)
    assert 0.9 * plain <= resident_bytes() < 2**40
