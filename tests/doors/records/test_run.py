"""What a record holds of several processes is summarized over all of them."""

from __future__ import annotations

import pytest

from reprune.doors.records.run import Run
from tests.doors.report.records import fitted, run_record


def test_the_peak_is_that_of_whichever_process_held_most() -> None:
    first, others = {"host": 1, "device": 9}, [{"host": 1, "device": 9}, {"host": 5, "device": 2}]
    run = Run.model_validate(run_record(1, peak_memory_bytes=first, peak_memory_bytes_by_rank=others))
    assert (run.peak.host, run.peak.device) == (5, 9)


def test_the_share_of_exchanging_is_of_the_time_of_the_windows_that_several_did() -> None:
    windows = [
        {**fitted(0), "seconds": 10.0, "exchange": {"seconds": [1.0, 3.0]}},
        {**fitted(1), "seconds": 90.0, "exchange": {"seconds": [8.0, 8.0]}},
        {**fitted(2), "seconds": 50.0},
    ]
    run = Run.model_validate(run_record(3, windows=windows, ranks=2))
    assert run.exchange == pytest.approx((2.0 + 8.0) / 100.0)
