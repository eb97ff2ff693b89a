"""The errors of a window over its epochs, and whether the held-out one rose. Knows nothing of the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reprune.doors.records.rows import known
from reprune.doors.records.run import Window
from reprune.doors.report.text import unbroken

RISE = 0.01
"""An error rose or fell if it changed by more than this share; less counts as noise."""

SLIGHT = unbroken(f"{100 * RISE:g} %")
"""The same as text."""


@dataclass(frozen=True)
class Rise:
    """How the held-out error of a window went up over its epochs."""

    window: Window
    kind: Literal["overfits", "harmed", "unknown"]
    """Whether the calibration error fell meanwhile, or did not, or whether that is not on record."""
    lowest_epoch: int  # 0 is the start
    share: float  # the last held-out error over the lowest, less 1
    kept: bool  # whether the window kept weights with such a high error


def calibration_course(window: Window) -> list[float | None]:
    """The relative calibration error at the start and after each epoch."""
    start = window.relative_calibration_error.before
    return [start, *(epoch.relative_calibration_error for epoch in window.epochs)]


def heldout_course(window: Window) -> list[float | None]:
    """The relative held-out error at the start and after each epoch."""
    return [window.relative_heldout_error.before, *(epoch.relative_heldout_error for epoch in window.epochs)]


def judged_course(window: Window) -> list[float | None]:
    """The held-out error at the start and after each epoch, in the guard's measure: all features count alike."""
    if not window.judged_apart:
        return heldout_course(window)
    return [window.standardized_heldout_error.before, *(epoch.standardized_heldout_error for epoch in window.epochs)]


def rise(window: Window) -> Rise | None:
    """Whether a window's held-out error rose over its epochs, by the first rule of the verdict; None if not."""
    heldout = judged_course(window)
    there = [(error, epoch) for epoch, error in enumerate(heldout) if known(error)]
    if len(there) < 2:
        return None
    lowest, epoch = min(there)
    last = there[-1][0]
    if last <= lowest * (1 + RISE):
        return None
    end = there[-1][1]
    then, now = _calibration(window, epoch), _calibration(window, end)
    measured = known(then) and now is not None
    if now is None and end - 1 > epoch:  # the state before tells at least whether the error had fallen by then
        now = _calibration(window, end - 1)
    fell = known(then) and known(now) and now < then * (1 - RISE)
    after = window.standardized_heldout_error.after if window.judged_apart else window.relative_heldout_error.after
    kept = known(after) and after > lowest * (1 + RISE)
    above = last / lowest - 1 if lowest else math.inf
    return Rise(window, "overfits" if fell else "harmed" if measured else "unknown", epoch, above, kept)


def _calibration(window: Window, state: int) -> float | None:
    """The calibration error of the state after an epoch, or of the start (0); None if it is not on record.

    An epoch's own is the mean over its steps, each measured before it is taken. If there is a single step, that is the
    error before the epoch; the error after it is the next epoch's, if that one went on from there.
    """
    epochs, course = window.epochs, calibration_course(window)
    if state == len(epochs) == window.kept_epoch:
        return window.relative_calibration_error.after
    if state == 0 or epochs[state - 1].steps != 1:
        return course[state]
    if state < len(epochs) and epochs[state].blocks == epochs[state - 1].blocks:
        return course[state + 1]
    return window.relative_calibration_error.after if state == window.kept_epoch else None


def rises(windows: Sequence[Window]) -> list[Rise]:
    """All rises, the highest first."""
    found = filter(None, map(rise, windows))
    return sorted(found, key=lambda rise: -rise.share)
