"""What someone who watches a run is told. Knows nothing of how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reprune.math.solver import Epoch
from reprune.planning.schedule import Window


class Watcher:
    """Is told what happens in a run; this one ignores it all, subclasses show it."""

    def started(self, windows: int, done: int) -> None:
        """The run begins (or goes on): so many windows in all, so many done before."""

    def phase(self, window: Window | None, what: str) -> None:
        """What is being done now, in a few words, and in which window."""

    def epoch(self, window: Window, epoch: Epoch, of: int) -> None:
        """An epoch of a window's reconstruction has ended."""

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        """A window is durable; `record` is its entry in reprune.json."""

    def note(self, text: str) -> None:
        """Something that was not done by the plain rule."""
