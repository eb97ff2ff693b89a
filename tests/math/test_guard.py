"""The guard remembers the best state, gives it back, and has a stated patience."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reprune.math.guard import Guard
from reprune.math.reconstruction_error import Error
from tests.math.test_masking import Picking


def _run(errors: list[float], patience: int) -> tuple[int, float, float, int]:
    """Go through states 0, 1, 2, ... with these errors: epoch kept, its error, the state restored, epochs run."""
    parameter = nn.Parameter(torch.zeros(2))
    guard = Guard([parameter], [None], Error(errors[0], errors[0] / 2), patience)
    ran = 0
    for epoch, error in enumerate(errors[1:], 1):
        with torch.no_grad():
            parameter.fill_(epoch)
        ran = epoch
        if guard.stops_after(epoch, Error(error, error / 2)):
            break
    kept, lowest = guard.restore_()
    assert lowest.relative == lowest.normalized / 2
    return kept, lowest.normalized, float(parameter.detach()[0]), ran


@given(errors=st.lists(st.floats(0, 10), min_size=1, max_size=12), patience=st.integers(1, 5))
def test_it_keeps_the_first_lowest_of_the_states_that_it_saw(errors: list[float], patience: int) -> None:
    kept, lowest, state, ran = _run(errors, patience)
    assert lowest == min(errors[: ran + 1])
    assert kept == state == errors.index(lowest)
    # It stopped exactly when `patience` epochs in a row had brought no error below those of all epochs before.
    expected = next(
        (n for n in range(1, len(errors)) if n - errors.index(min(errors[1 : n + 1]), 1) >= patience), len(errors) - 1
    )
    assert ran == expected


@pytest.mark.parametrize(
    ("errors", "patience", "kept", "ran"),
    [
        ([3.0, 2.0, 1.0, 0.5], 1, 3, 3),
        ([3.0, 2.0, 2.5, 0.5], 1, 1, 2),
        ([3.0, 2.0, 2.5, 0.5], 2, 3, 3),
        ([3.0, 3.0, 3.0, 3.0], 2, 0, 3),
        ([1.0, 2.0, 1.5, 1.4, 0.8], 1, 4, 4),
        ([1.0, 2.0, 2.1, 2.2, 0.8], 2, 0, 3),
        ([3.0, math.nan, math.inf, 1.0], 3, 3, 3),
        ([3.0, math.nan, math.nan, 1.0], 2, 0, 2),
    ],
)
def test_the_epoch_kept_and_the_last_one_run_are_those_worked_out_by_hand(
    errors: list[float], patience: int, kept: int, ran: int
) -> None:
    found = _run(errors, patience)
    assert (found[0], found[3]) == (kept, ran)


def test_states_are_told_apart_with_all_features_alike_but_none_is_kept_that_is_worse_than_the_start_as_it_is() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    guard = Guard([parameter], [None], Error(4.0, 0.4, standardized=9.0), patience=2)
    # (plain, standardized): the second has the lowest plain one, the fourth's is above the start's, the third is kept.
    seen = [(3.0, 8.0), (1.0, 7.0), (4.0, 6.0), (4.1, 5.0), (3.0, 6.5), (3.0, 6.6)]
    stops = []
    for epoch, (plain, standardized) in enumerate(seen, 1):
        with torch.no_grad():
            parameter.fill_(epoch)
        stops.append(guard.stops_after(epoch, Error(plain, plain / 10, standardized)))
    assert stops == [False, False, False, False, False, True]  # two epochs in a row above the fourth
    assert guard.restore_() == (3, Error(4.0, 0.4, 6.0))
    assert parameter.item() == 3


def test_of_a_masked_parameter_what_may_change_is_put_back_and_zeros_are_zero_again() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    parameter, bias = nn.Parameter(torch.tensor([[1.0, 0, 2], [0, 0, 3]])), nn.Parameter(torch.tensor([4.0]))
    with Picking() as picking:
        guard = Guard([parameter, bias], [mask, None], Error(3.0, 0.3), patience=2)
        for epoch, error in enumerate((2.0, 2.5), 1):
            with torch.no_grad():
                parameter += mask
                bias += 1
            guard.stops_after(epoch, Error(error, error / 10))
    assert picking.shapes == [(6,), (6,)], "places in one vector"
    with torch.no_grad():
        parameter.fill_(math.nan)
    assert guard.restore_()[0] == 1
    assert parameter.tolist() == [[2.0, 0, 3], [0, 0, 4]] and bias.tolist() == [5.0]
