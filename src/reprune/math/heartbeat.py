"""How processes that wait for one of them know that it lives: it counts up a number in a store that all can read.

If that process dies, calls to the store may block. So threads make them, and waiting for a thread can be interrupted.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Protocol, final

_KEY = "reprune/alive"
_EACH = 0.5  # seconds between two signs of life
_LONGEST = 0.2  # seconds between two questions, at most
_LOOK = 0.5  # seconds until an interrupt is noticed, at most, if the system delivers it to another thread
_ENDING = 0.1  # seconds to wait for a thread that was told to end


class Store(Protocol):
    """The part of PyTorch's `Store` that is used; its methods raise `RuntimeError` if it cannot be reached."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are set."""

    def add(self, key: str, amount: int, /) -> int:
        """Add an amount to a key's number, 0 at first; returns the sum."""


@final
class Heartbeat:
    """The sign of life of one process, which gives it; other processes watch it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Give signs of life, until `end`."""
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop giving signs, if this process gave them."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_ENDING)

    def wait(self, key: str, patience: float) -> None:
        """Wait until a key is set, as long as the other process lives.

        Args:
            key: the key that it will set.
            patience: seconds without a sign of life after which to give up.

        Raises:
            RuntimeError: there was no sign of life for that long, or the store cannot be reached.
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
        with suppress(RuntimeError):  # waiting processes notice a lost store themselves
            while not self._over.wait(_EACH):
                self._store.add(_KEY, 1)


@final
class _Asking(threading.Thread):
    """Asks a store for a key until it is set, and reads the number of signs each time."""

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
