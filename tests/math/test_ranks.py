"""Processes find each other; a PyTorch built without torch.distributed is enough for one process."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from reprune.errors import InputError, LostRankError
from reprune.math.ranks import Together, _short

_WITHOUT = """
import sys
import torch.distributed as dist
dist.is_available = lambda: False
sys.modules["torch.distributed.rendezvous"] = None
"""


def test_a_pytorch_without_distributed_is_enough_for_one_process() -> None:
    """In a separate process, as this one has already imported it."""
    code = f"{_WITHOUT}from reprune.math.ranks import ALONE; print(ALONE.add([1.0]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[1.0]\n"), done.stderr


def test_a_pytorch_without_distributed_is_refused_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(
        InputError, match=r"needs torch\.distributed, which PyTorch .* is built without; start one process"
    ):
        Together(1)


@pytest.mark.parametrize(
    ("cards", "number", "gpus", "backend", "current"),
    [
        (0, 1, ["none", "none"], "gloo", []),
        (2, 1, ["a", "b"], "cpu:gloo,cuda:nccl", [1]),
        (4, 1, ["a", "b"], "cpu:gloo,cuda:nccl", [1]),
        (1, 1, ["a", "b"], "cpu:gloo,cuda:nccl", [0]),  # as srun shows each its own
        (2, 3, ["a", "b", "a", "b"], "gloo", [1]),  # NCCL refuses processes that share a GPU
        (1, 0, ["a", "a"], "gloo", [0]),
        (1, 0, ["a", "none"], "gloo", [0]),
        (1, 1, ["none", "part"], "gloo", [0]),
    ],
)
def test_each_has_a_gpu_of_its_own_as_far_as_there_are_any(
    cards: int, number: int, gpus: list[str], backend: str, current: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    used: list[int] = []
    store, count = dist.HashStore(), len(gpus)
    card = f"NVIDIA A100{' MIG 1g.5gb' * (gpus[number] == 'part')}"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=card, uuid=gpus[number])
    )
    for other in {*range(count)} - {number}:
        store.set(f"reprune/gpu/{other}", gpus[other])
    module = sys.modules["torch.distributed.rendezvous"]  # a function of torch.distributed has the same name
    monkeypatch.setattr(module, "rendezvous", lambda url, timeout: iter([(store, number, count)]))
    monkeypatch.setattr(dist, "init_process_group", lambda name, **more: begun.append((name, more)))
    for name, value in {"LOCAL_RANK": number, "LOCAL_WORLD_SIZE": count}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", "")  # so that it is restored
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT")
    ranks = Together(7)
    ranks._heart.end()
    ((name, more),) = begun
    assert (name, used) == (backend, current)
    assert (more["rank"], more["world_size"], more["timeout"].seconds) == (number, count, 7)
    assert store.timeout.seconds == 7
    assert ("TORCH_NCCL_BLOCKING_WAIT" in os.environ) is ranks._by_nccl is ("nccl" in backend)
    assert (ranks._heart._thread is not None) is (number == 0), "the first gives signs of life"


def test_who_is_not_told_where_the_others_are_does_not_find_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(LostRankError, match=r"cannot find each other: .*MASTER_ADDR"):
        Together(1)


def test_of_what_pytorch_says_is_shown_what_it_says_first() -> None:
    said = "[/pytorch/gloo/pair.cc:538] Read error [127.0.0.1]:53: Connection\n reset. This may be of use. No."
    assert _short(RuntimeError(said)) == "Read error [127.0.0.1]:53: Connection reset"
    assert _short(RuntimeError("no place. of 2.5 s")) == "no place. of 2.5 s"
    assert len(_short(RuntimeError(200 * "x"))) == 150
