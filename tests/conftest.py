"""For all tests: one thread, as tiny models gain nothing from more, no network, no waiting for a disk."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # processes that tests start read it, and so does torch when it is imported
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

# Examples have no deadline: while the machine does other work, one may take long.
settings.register_profile(
    "untimed", parent=settings.get_profile("ci" if "CI" in os.environ else "default"), deadline=None
)
settings.load_profile("untimed")
torch.set_num_threads(1)
gc.disable()  # until the first test
# Tests kill processes, but cut no power, so nothing need reach the disk. Processes that they start have the real fsync.
os.fsync = lambda descriptor: None
# A shell that runs tests in the background has them ignore Ctrl-C, and so would the processes that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _few_searches() -> None:
    """Keep what is imported by now out of garbage collection, which would take longer than pruning a tiny model."""
    gc.collect()
    gc.freeze()
    gc.enable()


_HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


@pytest.fixture(autouse=True)
def _own_interrupts() -> None:
    """Begin each test with the usual signal handlers: with those that a command leaves, an interrupt ends all tests.

    Commands run in tests and in fixtures of a wider scope, so what a test finds may be another test's.
    """
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama; tests must not change it."""
    from tests import tiny  # it takes seconds to import, which tests without a model should not

    return tiny.save("llama", tmp_path_factory.mktemp("models") / "llama")
