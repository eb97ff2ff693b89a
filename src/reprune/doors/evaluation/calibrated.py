"""Tells how much of a model's calibration data is in the text that it is measured on. Knows nothing of measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reprune.doors.evaluation.protocols import CutText
from reprune.engine.names import RECORD
from reprune.files.wellformed import read_json
from reprune.planning.overlap import overlap

_TOLD = 0.02  # share of passages; less is boilerplate


def calibrated_on(folder: Path, windows: CutText, notify: Callable[[str], None]) -> float | None:
    """The share of a model's calibration data that is in a text; None if it is unknown.

    `notify` is called if the share is large enough to matter.
    """
    try:
        record = read_json((folder / RECORD).read_text(encoding="utf-8"))
        share = overlap(record["sketch"], windows.running)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):  # it was not pruned by reprune
        return None
    if share >= _TOLD:
        notify(
            f"note: {windows.text} holds {share:.0%} of what this model was calibrated on,\n"
            "      so on other text its perplexity and errors may well be higher"
        )
    return share
