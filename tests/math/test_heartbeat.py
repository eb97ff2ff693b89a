"""A process that lives is waited for, however long; one that is silent is given up, and waiting can be interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from reprune.math import heartbeat
from reprune.math.heartbeat import Heartbeat

_LONG = 60.0


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    monkeypatch.setattr(heartbeat, "_EACH", 0.01)
    monkeypatch.setattr(heartbeat, "_LOOK", 0.01)
    return dist.HashStore()


@pytest.fixture
def living(store: dist.Store) -> Iterator[Heartbeat]:
    found = Heartbeat(store)
    found.begin()
    yield found
    found.end()


def test_what_is_there_is_not_waited_for(store: dist.Store) -> None:
    store.set("done", "1")
    Heartbeat(store).wait("done", _LONG)


@pytest.mark.usefixtures("living")
def test_one_that_lives_is_waited_for_beyond_patience(store: dist.Store) -> None:
    began = time.monotonic()
    threading.Timer(1.5, store.set, ("done", "1")).start()
    Heartbeat(store).wait("done", 1.0)
    assert time.monotonic() - began >= 1.5


def test_one_that_is_silent_from_then_on_is_given_up(store: dist.Store, living: Heartbeat) -> None:
    threading.Timer(0.3, living.end).start()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no sign of life for 1 s"):
        Heartbeat(store).wait("done", 0.8)
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("silent", [False, True])
def test_waiting_can_be_interrupted_even_while_the_store_is_silent(
    silent: bool, store: dist.Store, living: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    if silent:
        monkeypatch.setattr(heartbeat._Asking, "run", lambda _: over.wait(_LONG))
    threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        Heartbeat(store).wait("done", _LONG)
    over.set()


def test_a_store_that_is_gone_is_said() -> None:
    class Gone:
        def check(self, keys: list[str], /) -> bool:
            raise RuntimeError("Connection reset")

        def add(self, key: str, amount: int, /) -> int:
            return amount

    with pytest.raises(RuntimeError, match="Connection reset"):
        Heartbeat(Gone()).wait("done", _LONG)
