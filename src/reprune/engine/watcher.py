"""The events of a run, for those who watch it. Knows nothing of how they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reprune.math.solver import Epoch
from reprune.planning.schedule import Window


class Watcher:
    """Receives the events of a run. This class ignores them; subclasses show them."""

    def started(self, windows: int, done: int) -> None:
        """The run begins or resumes: the number of windows in all, and of those that are already done."""

    def phase(self, window: Window | None, what: str) -> None:
        """A phase begins, described in a few words; `window` is None outside of windows."""

    def epoch(self, window: Window, epoch: Epoch, of: int) -> None:
        """An epoch of a window's reconstruction has ended, out of `of` planned."""

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        """A window is finished and on disk; `record` is its entry in reprune.json."""

    def note(self, text: str) -> None:
        """Something out of the ordinary that the user should know, as a sentence."""
