"""If states were compared by another error than that of the loss, reports judge by that error and show it."""

from __future__ import annotations

import pytest

from reprune.doors.records.run import Run, Window
from reprune.doors.report.rises import rise
from reprune.doors.report.run import epochs_section
from reprune.doors.report.text import share
from reprune.doors.report.verdict import run_verdict
from tests.doors.report.records import fitted, run_record, said, window


def _judged(standardized: list[float], heldout: list[float], kept: int) -> Run:
    """A run of one window with squared loss and these courses of its standardized and its plain held-out error."""
    each = window(0, [0.1, 0.09, 0.08, 0.07][: len(heldout)], heldout, kept=kept)
    for epoch, error in zip(each["epochs"], standardized[1:], strict=True):
        epoch["standardized_heldout_error"] = error
    each["standardized_heldout_error"] = {"before": standardized[0], "after": standardized[kept]}
    each["guard"]["standardized_heldout_error"] = {"last": standardized[-1], "kept": standardized[kept]}
    return Run.model_validate({**run_record(1), "windows": [each]})


FALLS, RISES = [0.5, 0.4, 0.35, 0.3], [0.5, 0.4, 0.45, 0.6]
PLAIN = [0.2, 0.15, 0.17, 0.19]
"""Plain held-out errors, lowest after the first epoch, which may be due to one feature."""


def test_whether_a_window_overfits_is_seen_where_all_features_count_alike() -> None:
    assert rise(_judged(FALLS, PLAIN, kept=3).windows[0]) is None
    found = rise(_judged(RISES, PLAIN, kept=1).windows[0])
    assert found is not None
    assert (found.kind, found.lowest_epoch, found.share, found.kept) == ("overfits", 1, pytest.approx(0.5), False)
    kept = rise(_judged(RISES, PLAIN, kept=3).windows[0])
    assert kept is not None
    assert kept.kept
    # What the guard put back is told in its own measure: 0.4 is a third less than 0.6.
    assert "the held-out error is 33.3 % lower than after" in said(run_verdict(_judged(RISES, PLAIN, kept=1)))


def test_a_state_put_back_for_its_plain_error_is_told_by_that() -> None:
    """The last state has the lowest standardized error, but its plain one, 0.25, is above the start's, 0.2."""
    text = said(run_verdict(_judged([0.5, 0.4], [0.2, 0.25], kept=0)))
    assert "the held-out error is 20.0 % lower than after" in text


def test_the_page_shows_the_error_that_states_were_told_apart_by() -> None:
    run = _judged(FALLS, PLAIN, kept=3)
    (plot,) = epochs_section([("run", "Window 0", run.windows[0])]).plots
    assert plot.table.columns == ("epoch", "calibration", "held-out", "held-out, standardized", "kept")
    assert tuple(plot.table.rows[3])[3:] == (share(0.3), "kept")
    assert "it has the lowest standardized one (see the table)" in plot.caption
    standardized = Window.model_validate({**fitted(0), "loss": "standardized"})
    (without,) = epochs_section([("run", "Window 0", standardized)]).plots
    assert "held-out, standardized" not in without.table.columns
    assert "Errors are standardized, as the loss is." in without.caption


def test_the_page_says_that_an_epochs_error_is_of_other_states_than_the_windows_own() -> None:
    own, forced = Window.model_validate(fitted(0)), Window.model_validate({**fitted(0), "teacher_forcing": 0.5})
    told = [" ".join(epochs_section([("run", "Window 0", each)]).intro) for each in (own, forced)]
    assert ["teacher forcing" in text for text in told] == [False, True]
