"""The first step is halved until it hardly raises the held-out error, and the rate of all later steps with it."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.math.adam import Adam
from reprune.math.first_step import SHORTEST, TOLERANCE, shorten_
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Problem
from tests.math.test_widening import _Chain


def _bowl(parameter: nn.Parameter, center: float = 0.0) -> Error:
    error = float((parameter.detach() - center).square().sum())
    return Error(error, error)


@pytest.mark.parametrize(
    ("step", "scale"),
    [
        (-1.0, 1.0),  # from 1 to 0: as good as can be
        (-2.0, 1.0),  # to -1: no worse than before
        (-2.04, 1.0),  # to -1.04: 1.0816 times the error, which is within the tolerance
        (-2.1, 0.5),  # to -1.1: 1.21 times
        (-4.0, 0.5),
        (-4.2, 0.25),
        (1.0, 1 / 32),  # uphill: at 1 + 1/16 still 1.13 times, at 1 + 1/32 1.063
        (1000.0, SHORTEST),
        (math.inf, SHORTEST),
        (math.nan, SHORTEST),
    ],
)
@pytest.mark.parametrize("size", [1.0, 8.0])
def test_the_longest_step_that_is_taken_well_stays(step: float, scale: float, size: float) -> None:
    origin = torch.tensor([size])
    parameter = nn.Parameter(origin + size * step)
    looks: list[float] = []

    def heldout() -> Error:
        looks.append(float(parameter.detach()))
        return _bowl(parameter)

    assert shorten_([parameter], [origin], _bowl(nn.Parameter(origin)), heldout) == scale
    if math.isfinite(step):
        assert float(parameter.detach()) == pytest.approx(size * (1.0 + scale * step))
    assert len(looks) == min(int(-math.log2(scale)) + 1, 6)
    assert TOLERANCE == 1.1


@pytest.mark.parametrize(("plain", "standardized", "scale"), [(9.0, 1.0, 1.0), (1.0, 9.0, SHORTEST)])
def test_a_step_is_judged_with_all_features_alike(plain: float, standardized: float, scale: float) -> None:
    after = Error(plain, plain, standardized)
    assert shorten_([nn.Parameter(torch.ones(1))], [torch.zeros(1)], Error(1.0, 1.0, 1.0), lambda: after) == scale


def test_what_has_not_moved_stays_exactly_where_it_was() -> None:
    origin = torch.tensor([0.0, 0.1, -3.7])
    parameter = nn.Parameter(origin + torch.tensor([0.0, 0.0, 9.0]))
    shorten_([parameter], [origin], Error(1.0, 1.0), lambda: Error(2.0, 2.0))
    assert torch.equal(parameter.detach()[:2], origin[:2])


def _path(adam: Adam) -> tuple[list[Tensor], list[float]]:
    problem = _Chain(2)
    fit = adam.fit(problem, 0, lambda epoch: None)
    return problem.state(), [epoch.lr for epoch in fit.epochs]


def test_a_fit_goes_on_at_the_rate_of_its_first_step() -> None:
    """The twin: the same fit at that rate from the start."""
    long, rates = _path(Adam(3, 1.6, 2, try_first_step=True))
    assert len(set(rates)) == 1
    assert rates[0] < 1.6, "or this shows nothing"
    assert math.log2(1.6 / rates[0]) == pytest.approx(round(math.log2(1.6 / rates[0])))
    short, _ = _path(Adam(3, rates[0], 2))
    for found, wanted in zip(long, short, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_with_a_warm_up_a_whole_step_is_tried_and_a_part_of_it_taken() -> None:
    """The twin: the same fit without a try, at the rate that the try without a warm-up finds."""
    _, rates = _path(Adam(3, 1.6, 2, try_first_step=True))
    long, warmed = _path(Adam(3, 1.6, 2, try_first_step=True, warmup=0.4))
    assert warmed == rates
    assert rates[0] < 1.6, "or this shows nothing"
    short, _ = _path(Adam(3, rates[0], 2, warmup=0.4))
    for found, wanted in zip(long, short, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_rate_that_is_fine_is_left_alone() -> None:
    tried, rates = _path(Adam(3, 1e-3, 2, try_first_step=True))
    plain, _ = _path(Adam(3, 1e-3, 2))
    assert rates == [1e-3] * 3
    assert all(torch.equal(found, wanted) for found, wanted in zip(tried, plain, strict=True))


def test_the_weights_before_the_step_are_not_held_while_the_next_one_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[weakref.ref[Tensor]] = []
    seen: list[int] = []
    plain = Problem.loss

    def loss(self: Problem, samples: Tensor) -> Tensor:
        seen.append(sum(origin() is not None for origin in held))
        return plain(self, samples)

    def shorten(parameters: Any, start: Any, *more: Any) -> float:
        held.extend(map(weakref.ref, start))
        return shorten_(parameters, start, *more)

    monkeypatch.setattr(Problem, "loss", loss)
    monkeypatch.setattr("reprune.math.adam.shorten_", shorten)
    _path(Adam(2, 1.6, 2, try_first_step=True))
    assert held
    assert set(seen) == {0}
