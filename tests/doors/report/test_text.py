"""A report's numbers as text show what is small, what has a sign and what is unknown."""

from __future__ import annotations

import pytest

from reprune.doors.report.text import NONE, change, memory, number, numbered, share, two_places

MINUS = "\N{MINUS SIGN}"


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace(MINUS, "-")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0315, "3.15 %"),
        (0.00031, "0.031 %"),
        (-0.00031, "-0.031 %"),
        (0.0, "0.00 %"),
        (1e-9, "1e-07 %"),
        (None, NONE),
    ],
)
def test_a_small_share_keeps_two_digits(value: float | None, said: str) -> None:
    assert plain(share(value)) == said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (2.0, 2.5, "+25.0 %"),
        (2.0, 1.5, "-25.0 %"),
        (2.0, 2.0001, "0.0 %"),
        (2.0, 1.9999, "0.0 %"),
        (0.0, 1.0, NONE),
        (float("nan"), 1.0, NONE),
        (1.0, None, NONE),
    ],
)
def test_a_change_has_a_sign_where_it_shows(before: float, after: float | None, said: str) -> None:
    assert plain(change(before, after)) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (43000.4, "43,000"),
        (1000.0, "1,000"),
        (999.94, "999.9"),
        (0.001, "0.001000"),
        (0.00012, "1.20e-04"),
        (0.0, "0.000"),
        (float("inf"), "not finite"),
        (None, NONE),
    ],
)
def test_a_number_has_four_digits(value: float | None, said: str) -> None:
    assert plain(number(value)) == said


def test_perplexities_memory_and_lists_of_numbers_are_written_out() -> None:
    assert (two_places(4102912.4), two_places(None), two_places(float("nan"))) == ("4,102,912.40", NONE, "not finite")
    assert plain(memory(1.05e9)) == "1.05 GB"
    assert [numbered("window", each) for each in ([3], [3, 4], [3, 5], [3, 4, 5, 9])] == [
        *("window 3", "windows 3 and 4", "windows 3 and 5", "windows 3-5 and 9"),
    ]
