"""The harness is quiet while it works for a command, and left as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress

import datasets
import pytest

from reprune.doors.zeroshot.tasks import quiet_harness


@pytest.fixture(params=[True, False], ids=["bars", "no bars"])
def bars(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether a caller has progress bars on."""
    before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if request.param else datasets.disable_progress_bars)()
    yield request.param
    (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


@pytest.mark.parametrize("fails", [False, True])
def test_advice_and_bars_are_off_for_as_long_as_it_lasts(
    fails: bool, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("lm_eval")
    monkeypatch.setattr(logger, "level", logging.INFO)
    with suppress(RuntimeError), quiet_harness():
        assert datasets.are_progress_bars_disabled()
        assert logger.level == logging.ERROR
        if fails:
            raise RuntimeError
    assert datasets.are_progress_bars_disabled() != bars
    assert logger.level == logging.INFO
