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
    kind: Literal["overfits", "harmed"]
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
    heldout, calibration = judged_course(window), calibration_course(window)
    there = [(error, epoch) for epoch, error in enumerate(heldout) if known(error)]
    if len(there) < 2:
        return None
    lowest, epoch = min(there)
    last = there[-1][0]
    if last <= lowest * (1 + RISE):
        return None
    then, now = calibration[epoch], calibration[there[-1][1]]
    if window.kept_epoch == there[-1][1]:
        now = window.relative_calibration_error.after  # the epoch's own is a mean over the epoch
    fell = known(then) and known(now) and now < then * (1 - RISE)
    after = window.standardized_heldout_error.after if window.judged_apart else window.relative_heldout_error.after
    kept = known(after) and after > lowest * (1 + RISE)
    above = last / lowest - 1 if lowest else math.inf
    return Rise(window, "overfits" if fell else "harmed", epoch, above, kept)


def rises(windows: Sequence[Window]) -> list[Rise]:
    """All rises, the highest first."""
    found = filter(None, map(rise, windows))
    return sorted(found, key=lambda rise: -rise.share)
