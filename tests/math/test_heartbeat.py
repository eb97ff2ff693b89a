"""A live process is waited for, however long; a silent one is given up, and waiting can be interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

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


def test_an_interrupt_that_the_system_gives_to_another_thread_is_noticed_too(
    store: dist.Store, living: Heartbeat
) -> None:
    threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Heartbeat(store).wait("done", 3.0)
    assert time.monotonic() - began < 2.5


class _Silent:
    """A store without keys, which counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def check(self, keys: list[str], /) -> bool:
        self.asked += 1
        return False

    def add(self, key: str, amount: int, /) -> int:
        return -1


def test_patience_is_of_so_many_seconds(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(RuntimeError, match="no sign of life for 7 s"):
        Heartbeat(_Silent()).wait("done", 7)
    assert next(clock) == 7 + 2, "as it began, and once for each second"


def test_who_waits_asks_less_and_less_often_and_no_more_once_it_has_given_up(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_ENDING", 5.0)
    silent, began = _Silent(), time.monotonic()
    with pytest.raises(RuntimeError, match="no sign of life"):
        Heartbeat(silent).wait("done", 0.4)
    assert 1 <= silent.asked <= 10 + (time.monotonic() - began) / 0.2
    assert not _asking()


def test_threads_do_not_keep_a_process_from_its_end(
    store: dist.Store, living: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_ENDING", 0.0)
    over = threading.Event()
    monkeypatch.setattr(heartbeat._Asking, "run", lambda _: over.wait(_LONG))
    with pytest.raises(RuntimeError, match="no sign of life"):
        Heartbeat(store).wait("done", 0.0)
    assert [one.daemon for one in _asking()] == [True]
    over.set()
    assert living._thread is not None and living._thread.daemon
    monkeypatch.setattr(heartbeat, "_ENDING", 5.0)
    living.end()
    assert not living._thread.is_alive()


def _asking() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if isinstance(one, heartbeat._Asking)]


class _Gone:
    def check(self, keys: list[str], /) -> bool:
        raise RuntimeError("Connection reset")

    def add(self, key: str, amount: int, /) -> int:
        raise RuntimeError("Connection reset")


def test_a_store_that_is_gone_is_said() -> None:
    with pytest.raises(RuntimeError, match="Connection reset"):
        Heartbeat(_Gone()).wait("done", _LONG)


@pytest.mark.usefixtures("store")
def test_where_the_store_is_gone_who_gives_signs_ends_without_a_word() -> None:
    """An error in the thread would print a traceback beside the process's message."""
    alone = Heartbeat(_Gone())
    alone.begin()
    assert alone._thread is not None
    alone._thread.join(_LONG)
    alone.end()
