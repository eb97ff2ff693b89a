"""Each source gives its own count or an equal share, and held-out samples are extra."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.errors import InputError
from reprune.planning.shares import share_out
from reprune.planning.sources import SourceSpec, parse_source

COUNTS = st.lists(st.none() | st.integers(1, 50), min_size=1, max_size=4)


def _counts(calibration: str, heldout: str, samples: int) -> tuple[list[int], list[int]]:
    shares = share_out(
        [parse_source(text) for text in calibration.split()],
        [parse_source(text) for text in heldout.split()],
        samples,
    )
    return (
        [share.count for share in shares if share.role == "calibration"],
        [share.count for share in shares if share.role == "heldout"],
    )


@pytest.mark.parametrize(
    ("calibration", "heldout", "samples", "expected"),
    [
        ("c4", "", 256, ([256], [32])),
        ("c4 ptb manual", "", 20, ([7, 7, 6], [1, 1, 1])),
        ("c4=100 ptb", "", 9, ([100, 9], [13, 2])),
        ("c4=5", "", 256, ([5], [1])),
        ("c4", "ptb", 30, ([30], [4])),
        ("c4", "ptb=9", 30, ([30], [9])),
        ("c4", "ptb=9 manual wikitext2", 30, ([30], [9, 2, 2])),
        ("c4", "ptb manual", 3, ([3], [1, 1])),
        ("c4=40 ptb", "manual", 8, ([40, 8], [6])),
        ("c4=40", "manual", 8, ([40], [5])),
    ],
)
def test_sources_without_a_count_share_the_samples_and_an_eighth_more_is_held_out(
    calibration: str, heldout: str, samples: int, expected: tuple[list[int], list[int]]
) -> None:
    assert _counts(calibration, heldout, samples) == expected


@given(counts=COUNTS, samples=st.integers(4, 100))
def test_shares_add_up_and_hold_out_an_eighth(counts: list[int | None], samples: int) -> None:
    shares = share_out([SourceSpec("manual", count) for count in counts], [], samples)
    calibration = [share.count for share in shares if share.role == "calibration"]
    free = [share for share, count in zip(calibration, counts, strict=True) if count is None]
    assert sum(free) == (samples if free else 0)
    assert max(free, default=0) - min(free, default=0) <= 1
    assert [s.count for s in shares if s.role == "heldout"] == [-(-count // 8) for count in calibration]


def test_each_share_has_random_numbers_of_its_own() -> None:
    shares = share_out([SourceSpec("c4"), SourceSpec("c4")], [], 16)
    drawn = {(seed, number): share.generator(seed).random() for seed in (0, 1) for number, share in enumerate(shares)}
    assert len({*drawn.values()}) == len(drawn) == 8
    assert all(shares[number].generator(seed).random() == value for (seed, number), value in drawn.items())


@pytest.mark.parametrize(
    ("calibration", "samples", "message"), [("c4", 0, "got 0 for 1"), ("c4 ptb=9 manual", 1, "1 for 2")]
)
def test_what_leaves_a_source_without_samples_is_refused(calibration: str, samples: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _counts(calibration, "", samples)
