"""One formula yields the paper's schedules; in each, blocks are pruned and become final in order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprune.planning.schedule import windows

_FEW = settings(deadline=None, max_examples=100)


@st.composite
def _schedules(draw: st.DrawFn) -> tuple[int, int, int]:
    size = draw(st.integers(1, 8))
    return draw(st.integers(1, 20)), size, draw(st.integers(1, size))


@pytest.mark.parametrize(
    ("blocks", "size", "stride", "expected"),
    [
        (4, 1, 1, [[0], [1], [2], [3]]),
        (4, 2, 1, [[0], [0, 1], [1, 2], [2, 3], [3]]),
        (1, 2, 1, [[0], [0]]),
        (4, 2, 2, [[0, 1], [2, 3]]),
        (5, 2, 2, [[0, 1], [2, 3], [4]]),
        (4, 4, 4, [[0, 1, 2, 3]]),
        (3, 8, 8, [[0, 1, 2]]),
        (4, 3, 2, [[0, 1], [1, 2, 3], [3]]),
        (4, 3, 1, [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3], [3]]),
    ],
)
def test_the_papers_schedules_and_others_are_points_of_one_formula(
    blocks: int, size: int, stride: int, expected: list[list[int]]
) -> None:
    assert [list(window.blocks) for window in windows(blocks, size, stride)] == expected


def test_overlapping_windows_prune_what_enters_and_retire_what_leaves() -> None:
    found = windows(3, 2, 1)
    assert [list(window.fresh) for window in found] == [[0], [1], [2], []]
    assert [list(window.retired) for window in found] == [[], [0], [1], [2]]


def test_block_by_block_every_window_prunes_and_retires_its_block() -> None:
    assert all(window.blocks == window.fresh == window.retired for window in windows(5, 1, 1))


@_FEW
@given(schedule=_schedules())
def test_every_block_is_fresh_once_and_retired_once_in_order(schedule: tuple[int, int, int]) -> None:
    blocks, found = schedule[0], windows(*schedule)
    assert [block for window in found for block in window.fresh] == list(range(blocks))
    assert [block for window in found for block in window.retired] == list(range(blocks))


@_FEW
@given(schedule=_schedules())
def test_a_window_holds_consecutive_blocks_and_what_it_prunes_and_retires(
    schedule: tuple[int, int, int],
) -> None:
    for number, window in enumerate(windows(*schedule)):
        assert window.index == number
        assert 1 <= len(window.blocks) <= schedule[1]
        assert window.blocks.step == 1
        assert set(window.fresh) <= set(window.blocks)
        assert set(window.retired) <= set(window.blocks)


@_FEW
@given(schedule=_schedules())
def test_a_block_of_a_window_is_pruned_by_then_and_not_final_before(schedule: tuple[int, int, int]) -> None:
    pruned: set[int] = set()
    final: set[int] = set()
    for window in windows(*schedule):
        pruned |= set(window.fresh)
        assert set(window.blocks) <= pruned - final
        final |= set(window.retired)
        # The student's stream is at the first block that is not final: the next window begins there.
        assert final == set(range(len(final)))
        assert window.retired.start == window.blocks.start or not window.retired


@pytest.mark.parametrize(("size", "stride"), [(1, 2), (2, 3), (1, 0), (2, -1), (0, 0)])
def test_a_stride_that_would_leave_blocks_out_is_refused(size: int, stride: int) -> None:
    with pytest.raises(ValueError, match=rf"1 <= stride <= size, got size {size} and stride {stride}"):
        windows(4, size, stride)
