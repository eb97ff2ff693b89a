"""How processes that wait for one of them know that it lives: it counts up a number in a store that all can read.

The store may fall silent with it, so threads ask; who waits for them can be interrupted.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Protocol, final

_KEY = "reprune/alive"
_EACH = 0.5  # seconds from sign to sign
_LONGEST = 0.2  # seconds from question to question
_LOOK = 0.5  # seconds for an interrupt to be noticed, where the system wakes another thread
_ENDING = 0.1  # seconds for a thread to notice that it is over


class Store(Protocol):
    """What is needed of PyTorch's; all raise `RuntimeError` where it cannot be reached."""

    def check(self, keys: list[str], /) -> bool:
        """Whether these are set."""

    def add(self, key: str, amount: int, /) -> int:
        """The number with so much added."""


@final
class Heartbeat:
    """Of one process, as itself or another of them sees it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Be the one that lives, until `end`."""
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Give no more signs, if this is the one that did."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_ENDING)

    def wait(self, key: str, patience: float) -> None:
        """Wait until a key is set, as long as the other lives.

        Args:
            key: that it will set.
            patience: seconds without a sign of life after which it is given up.

        Raises:
            RuntimeError: it is given up, or the store cannot be reached.
        """
        asking = _Asking(self._store, key)
        asking.start()
        try:
            heard, since = asking.signs, time.monotonic()
            while asking.is_alive():
                asking.join(_LOOK)
                if asking.signs != heard:
                    heard, since = asking.signs, time.monotonic()
                elif time.monotonic() - since > patience:
                    raise RuntimeError(f"no sign of life for {patience:.0f} s")
        finally:
            asking.over.set()
            asking.join(_ENDING)
        if asking.wrong is not None:
            raise asking.wrong

    def _beat(self) -> None:
        with suppress(RuntimeError):  # those who wait notice too that the store is gone
            while not self._over.wait(_EACH):
                self._store.add(_KEY, 1)


@final
class _Asking(threading.Thread):
    """Asks a store for a key until it is there, and each time for the number."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__(daemon=True)
        self._store, self._key = store, key
        self.over = threading.Event()
        self.signs = -1
        self.wrong: RuntimeError | None = None

    def run(self) -> None:
        pause = 0.001
        try:
            while not self._store.check([self._key]):
                self.signs = self._store.add(_KEY, 0)
                if self.over.wait(pause):
                    return
                pause = min(2 * pause, _LONGEST)
        except RuntimeError as error:
            self.wrong = error
