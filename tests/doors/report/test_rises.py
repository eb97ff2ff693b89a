"""A window's held-out error rose if it ends above its lowest; it overfits if its calibration error fell since then."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.doors.records.run import Window
from reprune.doors.report.rises import rise, rises
from tests.doors.report.records import window


def seen(calibration: list[float], heldout: list[float], **options: Any) -> Any:
    return rise(Window.model_validate(window(0, calibration, heldout, **options)))


def test_a_window_overfits_where_the_held_out_error_rises_while_the_calibration_error_falls() -> None:
    found = seen([1.0, 0.8, 0.6, 0.5], [1.0, 0.9, 0.95, 1.08])
    assert (found.kind, found.lowest_epoch, found.kept) == ("overfits", 1, False)
    assert found.share == pytest.approx(0.2)
    assert seen([1.0, 0.8, 0.6], [1.0, 0.9, 0.8]) is None
    assert seen([1.0, 0.8, 0.6], [1.0, 0.9, 0.908]) is None, "less than 1 % is noise"
    assert seen([1.0, 0.8, 0.6], [1.0, 0.9, 0.91]).kind == "overfits"
    assert seen([1.0, 0.8], [1.0, 1.2]).lowest_epoch == 0, "the start counts"
    assert seen([1.0], [1.0]) is None, "nothing was trained"


def test_training_that_lowers_neither_error_is_harm_and_no_overfitting() -> None:
    assert seen([1.0, 3.0, 2.0], [1.0, 2.0, 1.5]).kind == "harmed"
    assert seen([1.0, 0.995], [1.0, 2.0]).kind == "harmed"
    # The last epoch's error is a mean over it; if the weights after it were kept, their own error counts.
    kept = window(0, [1.0, 1.0], [1.0, 2.0], guard=False)
    kept["relative_calibration_error"]["after"] = 0.5
    found = rise(Window.model_validate(kept))
    assert found is not None
    assert (found.kind, found.kept) == ("overfits", True)


def test_after_a_single_step_the_calibration_error_is_the_next_epochs() -> None:
    """The epoch's own was measured before its step."""

    def single(*errors: list[float], blocks: list[int] | None = None, **options: Any) -> Any:
        made = window(0, *errors, **options)
        for number, epoch in enumerate(made["epochs"]):
            epoch |= {"steps": 1, "blocks": [blocks[number]] if blocks else [0]}
        return rise(Window.model_validate(made))

    assert single([1.0, 1.0], [1.0, 1.2]).kind == "unknown"
    assert single([1.0, 1.0, 0.5], [1.0, 1.2, 1.4]).kind == "overfits", "it had fallen by the step before the last"
    assert single([1.0, 1.0, 0.5], [1.0, 0.9, 1.2]).kind == "unknown", "it is from 0.5 that it would have to fall"
    assert single([1.0, 1.0, 0.5, 0.4], [1.0, 0.9, 1.2, 1.4]).kind == "overfits"
    apart = single([1.0, 1.0, 0.5, 0.4], [1.0, 0.9, 1.2, 1.4], blocks=[0, 1, 1], kept=0)
    assert apart.kind == "unknown", "the second epoch need not have gone on from the first"
    kept = window(0, [1.0, 1.0], [1.0, 1.2], guard=False)
    for after, kind in ((0.5, "overfits"), (1.5, "harmed")):
        kept["relative_calibration_error"]["after"] = after
        kept["epochs"][0]["steps"] = 1
        found = rise(Window.model_validate(kept))
        assert found is not None
        assert found.kind == kind


def test_the_worst_window_comes_first() -> None:
    windows = [window(i, [1.0, 0.5], [1.0, last]) for i, last in enumerate((1.1, 1.3, 0.9, 1.2))]
    assert [found.window.index for found in rises([Window.model_validate(one) for one in windows])] == [1, 3, 0]


def test_the_calibration_error_has_to_fall_from_where_the_held_out_error_was_lowest() -> None:
    assert seen([1.0, 0.5, 0.6], [1.0, 0.8, 1.0]).kind == "harmed"
    assert seen([1.0, 0.5, 0.4], [1.0, 0.8, 1.0]).kind == "overfits"


def test_a_state_within_a_percent_of_the_lowest_is_not_kept_high() -> None:
    course = [1.0, 0.9, 0.905, 1.0]
    assert [seen([1.0, 0.8, 0.7, 0.6], course, kept=kept).kept for kept in (1, 2, 3)] == [False, False, True]
