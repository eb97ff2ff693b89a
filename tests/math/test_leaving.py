"""One of several processes leaves the others without waiting for ever."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from reprune.math import ranks as module
from reprune.math.heartbeat import Heartbeat
from reprune.math.ranks import Together, Traffic


@pytest.fixture
def _held_lock() -> Iterator[None]:
    """Pass Python's lock to another thread only when this one waits for something."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def hearing(monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds that processes have to meet the same error, shortened."""
    monkeypatch.setattr(module, "_HEARING", 0.2)
    return 0.2


def _rank(number: int, count: int, store: Any) -> Together:
    ranks = object.__new__(Together)
    ranks.number, ranks.count = number, count
    ranks._store, ranks._heart = store, Heartbeat(store)
    return ranks


@pytest.mark.usefixtures("_held_lock")
def test_threads_that_await_pythons_lock_have_it_before_the_group_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch 2.6 holds the lock while it waits for gloo's threads, which need it to release tensors."""
    gate, had, at_end = threading.Lock(), threading.Event(), []

    def let_go() -> None:
        with gate:
            had.set()

    gate.acquire()
    threading.Thread(target=let_go).start()
    monkeypatch.setattr(dist, "destroy_process_group", lambda: at_end.append(had.is_set()))
    gate.release()
    Together.close(_rank(0, 2, dist.HashStore()))
    assert at_end == [True]


def test_it_leaves_others_that_are_gone_and_gives_no_more_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    def destroy() -> None:
        raise RuntimeError("Connection reset")

    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    ranks = _rank(0, 2, dist.HashStore())
    ranks._heart.begin()
    ranks.close()
    assert ranks._heart._over.is_set()


@pytest.mark.parametrize(
    ("nccl", "on_gpu", "failed", "leaves"),
    [
        (False, True, True, True),
        (True, True, False, True),
        (True, False, True, True),  # an error before anything was sent, such as a wrong flag
        (True, True, True, False),
    ],
)
def test_by_nccl_a_process_that_failed_ends_without_waiting_until_the_others_leave(
    nccl: bool, on_gpu: bool, failed: bool, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for its part of a sum until they give it up, and its message is printed after this."""
    left: list[int] = []
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(1))
    ranks = _rank(0, 2, dist.HashStore())
    ranks._by_nccl, ranks.traffic = nccl, Traffic()
    sent: Any = SimpleNamespace(is_cuda=on_gpu)
    ranks._begin(lambda _, async_op: SimpleNamespace(wait=print), sent, 0)
    ranks._heart.begin()
    ranks.close(failed)
    assert (bool(left), ranks._heart._over.is_set()) == (leaves, True)


def test_what_all_come_to_is_said_by_the_first_and_another_reason_by_who_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_HEARING", 30.0)
    store = dist.HashStore()
    first, second, third = (_rank(number, 3, store) for number in range(3))
    said: list[bool] = []
    saying = threading.Thread(target=lambda: said.append(first.blame("the disk is full")))
    saying.start()
    assert [second.blame("the disk is full"), third.blame("out of memory")] == [False, True]
    saying.join(30)
    assert said == [True]
    began = time.monotonic()
    assert first.blame("the disk is full"), "as all have heard it"
    assert time.monotonic() - began < 20


def test_who_hears_nothing_of_the_first_says_it_and_the_first_waits_no_longer_than_that(hearing: float) -> None:
    began = time.monotonic()
    assert _rank(1, 2, dist.HashStore()).blame("out of memory")
    assert _rank(0, 2, dist.HashStore()).blame("out of memory")
    assert 2 * hearing <= time.monotonic() - began < 20


def test_of_those_who_lose_others_one_says_so() -> None:
    store = dist.HashStore()
    assert [_rank(number, 4, store).is_first_to_lose() for number in (3, 0, 1)] == [True, False, False]


@pytest.mark.parametrize("silent", [False, True])
def test_where_nobody_can_be_asked_the_first_two_say_so(silent: bool, hearing: float) -> None:
    """If a single process is lost, one of these two is not."""
    over = threading.Event()

    class Gone:
        def add(self, key: str, amount: int) -> int:
            if silent:
                over.wait(60)
            raise RuntimeError("Connection reset")

    assert [_rank(number, 4, Gone()).is_first_to_lose() for number in range(4)] == [True, True, False, False]
    over.set()
