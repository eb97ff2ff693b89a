"""A machine's speed is measured with sizes that fit it, or taken from its data sheet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reprune.engine import speed as measuring
from reprune.engine.machines import MACHINES, Machine, find_machine
from reprune.engine.speed import _size, measure_speed
from reprune.errors import InputError
from reprune.model.full_speed import _LARGE

_SLOWER = 1 / 0.9  # what runs take, over the shortest times


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_machine_does_a_part_of_what_its_maker_says(machine: Machine) -> None:
    half, full = machine.speed("bfloat16"), machine.speed("float32")
    assert full.products == full.full == half.full < half.products < machine.bfloat16
    assert half.traffic < machine.bandwidth and half.link < machine.link < half.traffic
    assert f"{machine.memory_bytes / 1e9:g} GB)" in machine.name


def test_an_unknown_machine_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"--on tpu: expected one of h100, a100, 4090"):
        find_machine("tpu")


@pytest.mark.parametrize(("free", "size"), [(80e9, 8192), (11e9, 8192), (8e9, 4096), (1e9, 2048), (1e6, 1024)])
def test_what_a_gpu_is_measured_by_fits_it(free: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    assert _size(torch.device("cuda", 0)) == size


def test_a_link_is_measured_by_pinned_memory_as_a_run_sends_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run gathers states there first, which may take longer than the sending."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    ones, copy, did = torch.ones, torch.Tensor.copy_, list[Any]()

    def noted(*shape: Any, **options: Any) -> torch.Tensor:
        if options.get("device") is None:
            did.append(options.pop("pin_memory", False))  # a machine without a GPU cannot pin
        return ones(*shape, **options)

    def best(device: torch.device, *runs: Callable[[], torch.Tensor]) -> list[float]:  # without a driver
        monkeypatch.setattr(torch.Tensor, "copy_", lambda *given: did.append("gathered") or copy(*given))
        did.append(runs[-1]().device)
        return [1.0] * len(runs)

    monkeypatch.setattr(torch, "ones", noted)
    monkeypatch.setattr(measuring, "_best_of_each", best)
    monkeypatch.setattr("reprune.model.full_speed._is_better", lambda: False)  # which compares values
    gpu = torch.device("cuda", 0)
    with FakeTensorMode():
        assert measure_speed(gpu, torch.bfloat16).link == 2**28 / _SLOWER
    assert [*dict.fromkeys(did)] == [False, True, "gathered", gpu], "a default device calls methods twice"


def test_what_disturbs_one_half_of_the_measurement_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The halves are apart in time: what else there is to do is done between them. Rates are by the shortest times."""
    did: list[str] = []
    times = iter([[5.0, 2.0, 1.0, 0.5, 1.0], [4.0, 3.0, 2.0, 1.0, 1.0]])

    def best(*_: Any) -> list[float]:
        did.append("measured")
        return next(times)

    monkeypatch.setattr(measuring, "_best_of_each", best)
    monkeypatch.setattr("reprune.model.full_speed._is_better", lambda: False)
    speed = measure_speed(torch.device("cpu"), torch.bfloat16, lambda: did.append("worked"))
    assert did == ["measured", "worked", "measured"]
    expected = [1024.0**3, 2 * 1024.0**3, 2 * 4 * 8 * 1024**2 / 4, 8.0 * 16 * 1024**2 * 64]
    found = [speed.full, speed.products, speed.traffic, speed.attention]
    assert found == [rate / _SLOWER for rate in expected] and speed.link == math.inf


def test_elementwise_operations_are_measured_in_memory_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As runs keep theirs; what they do there computes more than it moves, as GELU does."""
    kept: list[int] = []
    monkeypatch.setattr("reprune.model.full_speed._set", lambda free, large: kept.append(large))
    monkeypatch.setattr("reprune.model.full_speed._is_better", lambda: False)

    def best(device: torch.device, *runs: Callable[[], torch.Tensor]) -> list[float]:
        assert torch.equal(runs[0](), torch.nn.functional.gelu(torch.ones(8 * 1024**2), approximate="tanh"))
        assert kept == [_LARGE]
        return [1.0] * len(runs)

    monkeypatch.setattr(measuring, "_best_of_each", best)
    measure_speed(torch.device("cpu"), torch.bfloat16)


def test_the_machine_is_measured() -> None:
    speed = measure_speed(torch.device("cpu"), torch.float32)
    assert speed.products == speed.full > 1e8
    assert speed.traffic > 1e7 and speed.link == math.inf
    assert speed.attention is not None and speed.attention > 1e7
