"""A machine's speed is measured by what fits it, or known by its maker; so is what the process takes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from reprune.engine.machines import MACHINES, Machine, find_machine
from reprune.engine.speed import _size, measure_speed, resident_bytes
from reprune.errors import InputError


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_machine_does_a_part_of_what_its_maker_says(machine: Machine) -> None:
    half, full = machine.speed("bfloat16"), machine.speed("float32")
    assert full.products == full.full == half.full < half.products < machine.bfloat16
    assert half.traffic < machine.bandwidth and half.link < machine.link < half.traffic


def test_an_unknown_machine_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"--on tpu: expected one of h100, a100, 4090"):
        find_machine("tpu")


@pytest.mark.parametrize(("free", "size"), [(80e9, 8192), (11e9, 8192), (8e9, 4096), (1e9, 2048), (1e6, 1024)])
def test_what_a_gpu_is_measured_by_fits_it(free: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    assert _size(torch.device("cuda", 0)) == size


def test_the_machine_is_measured() -> None:
    speed = measure_speed(torch.device("cpu"), torch.float32)
    assert speed.products == speed.full > 1e8
    assert speed.traffic > 1e7 and speed.link == math.inf
    assert speed.attention is not None and speed.attention > 1e7
    assert resident_bytes() > 10**7


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux counts a process's pages")
def test_what_the_process_takes_is_counted_in_the_pages_of_this_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = resident_bytes()
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
