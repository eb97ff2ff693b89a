"""How one of several processes leaves the others."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from reprune.math.heartbeat import Heartbeat
from reprune.math.ranks import Together


@pytest.fixture
def _held_lock() -> Iterator[None]:
    """Python's lock goes to another thread only where this one waits for something."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_held_lock")
def test_threads_that_await_pythons_lock_have_it_before_the_group_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch 2.6 holds the lock while it waits for gloo's threads, which let go of tensors under it."""
    gate, had, at_end = threading.Lock(), threading.Event(), []

    def let_go() -> None:
        with gate:
            had.set()

    gate.acquire()
    threading.Thread(target=let_go).start()
    monkeypatch.setattr(dist, "destroy_process_group", lambda: at_end.append(had.is_set()))
    gate.release()
    ranks = object.__new__(Together)
    ranks._heart = Heartbeat(dist.HashStore())
    Together.close(ranks)
    assert at_end == [True]
