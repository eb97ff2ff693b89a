"""Shows a run to a person: a live bar on a terminal, plain lines elsewhere. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from reprune.doors.formats import clock, console, nats, percent, size, wrapped
from reprune.doors.rates import said_of_rate
from reprune.engine.peak_memory import peak_memory_bytes
from reprune.engine.watcher import Watcher
from reprune.math.solver import Epoch
from reprune.planning.schedule import Window, ranges

_MEASURES = {
    "squared": "errors: ||sparse - target||² / ||target||² of a window's outputs, before > after",
    "standardized": "errors: mean of ((sparse - target) / feature's deviation)², before > after",
}
_PREDICTIONS = "distillation: KL(dense || sparse) of the predictions, in nats per token"
_HEAD = (
    f"{'window':>7}  {'blocks':<9} {'calibration error':<17}  {'held-out error':<17} {'time':>7} {'left':>7}   memory"
)


@contextmanager
def watching(quiet: bool, verbose: bool) -> Iterator[Watcher]:
    """A watcher that shows a run, closed at the end however it ends."""
    if quiet:
        yield Watcher()
        return
    output = console()
    if not output.is_interactive:
        yield _Lines(output, verbose)
        return
    with bar_of(output, *(TextColumn(f"{{task.fields[{field}]}}") for field in ("left", "memory"))) as bar:
        yield _Bar(output, verbose, bar)


def bar_of(output: Console, *more: TextColumn) -> Progress:
    """A bar with the current task, how much of it is done, and for how long; it disappears at the end."""
    done = TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn()
    return Progress(*done, TimeElapsedColumn(), *more, console=output, transient=True)


class _Lines(Watcher):
    """One line per window."""

    def __init__(self, output: Console, verbose: bool) -> None:
        self._output = output
        self._verbose = verbose
        self._told: set[str] = set()
        self._windows = 0
        self._left = 0
        self._seconds: list[float] = []
        self._rated = False  # whether a window has been trained, so that its learning rate is known

    def started(self, windows: int, done: int) -> None:
        self._windows, self._left = windows, windows - done
        if done:
            self._output.print(f"going on: {done} of {windows} windows are finished")

    def phase(self, window: Window | None, what: str) -> None:
        if window is None:
            self._output.print(what, style="dim")
        elif self._verbose:
            self._output.print(f"         {what}", style="dim")

    def epoch(self, window: Window, epoch: Epoch, of: int) -> None:
        if self._verbose:
            said = nats if window.distills else percent
            self._output.print(
                f"         epoch {epoch.number}/{of}: calibration {said(epoch.calibration)}, "
                f"held-out {said(epoch.heldout)}",
                style="dim",
            )

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        self._left -= 1
        self._seconds.append(record["seconds"])
        if window.distills:
            self._output.print(_PREDICTIONS, style="bold")
            passed = [epoch["calibration_divergence"] for epoch in record["epochs"]]
            calibration = {"before": passed[0], "after": passed[-1]} if passed else None
            changes = [_change(calibration, nats) if calibration else "", _change(record["heldout_divergence"], nats)]
            self._line(window, record, changes)
            return
        if len(self._seconds) == 1:
            self._output.print(_MEASURES[record["loss"]], _HEAD, sep="\n", style="bold")
        errors = (record[f"relative_{which}_error"] for which in ("calibration", "heldout"))
        self._line(window, record, [_change(error, percent) for error in errors])
        if self._rated or record["relative_lr"] is None:
            return
        self._rated = True
        if said := said_of_rate([record]):  # at the first window that is trained, not after hours
            self.note("\n      ".join([f"rate {said[0]}", said[1]]))

    def _line(self, window: Window, record: Mapping[str, Any], changes: Sequence[str]) -> None:
        self._output.print(
            f"{f'{window.index + 1}/{self._windows}':>7}  {ranges(window.blocks):<9} {changes[0]:<17}  "
            f"{changes[1]:<17} {clock(record['seconds']):>7} {self._time_left():>7} "
            f"{size(peak_memory_bytes('cpu')['host']):>8}"
        )

    def _time_left(self, share: float = 0.0, seconds: float = 0.0) -> str:
        """How long the rest will take, if a share of the current window took so many seconds."""
        each = (sum(self._seconds) + seconds) / (len(self._seconds) + share)
        return clock(each * (self._left - share))

    def note(self, text: str) -> None:
        if text not in self._told:  # what goes on in float32 is begun once more, with the same notes
            self._told.add(text)
            self._output.print(wrapped(f"note: {text}"), style="yellow")


@final
class _Bar(_Lines):
    """The same lines above a bar with the current task and, from the first epoch or window on, the time left."""

    def __init__(self, output: Console, verbose: bool, bar: Progress) -> None:
        super().__init__(output, verbose)
        self._bar = bar
        self._task = bar.add_task("starting", total=None, left="", memory="")
        self._window: Window | None = None
        self._began = 0.0  # when the current window did
        self._since = 0.0  # when its current phase or epoch did

    def started(self, windows: int, done: int) -> None:
        super().started(windows, done)
        self._bar.update(self._task, total=windows, completed=done)

    def phase(self, window: Window | None, what: str) -> None:
        if window is not self._window:
            self._window, self._began = window, monotonic()
        self._since = monotonic()
        self._show(what)
        if window is not None:
            super().phase(window, what)

    def epoch(self, window: Window, epoch: Epoch, of: int) -> None:
        super().epoch(window, epoch, of)
        self._show(f"epoch {epoch.number}/{of}")
        now = monotonic()
        seconds, each = now - self._began, now - self._since
        self._since = now
        # The window's other epochs are taken to be as long as this one, and its outputs take about half as long.
        whole = seconds + each * (of - epoch.number + 0.5)
        self._reached(seconds / whole, seconds)

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        super().window_done(window, record)
        self._reached()

    def _reached(self, share: float = 0.0, seconds: float = 0.0) -> None:
        """A share of the current window is done, in so many seconds."""
        left = f"{self._time_left(share, seconds)} left"
        self._bar.update(self._task, completed=self._windows - self._left + share, left=left)

    def _show(self, what: str) -> None:
        self._bar.update(self._task, description=f"{what:<14}", memory=f"peak {size(peak_memory_bytes('cpu')['host'])}")


@contextmanager
def counting(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows how many of something are done; silent off a terminal."""
    output = console()
    if quiet or not output.is_interactive:
        yield lambda done, of: None
        return
    with bar_of(output) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _change(error: Mapping[str, float], said: Callable[[float], str]) -> str:
    if error["before"] == error["after"]:
        return said(error["after"])
    return f"{said(error['before'])} > {said(error['after'])}"
