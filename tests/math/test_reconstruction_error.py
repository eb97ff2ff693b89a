"""Over batches, the error is (1 / (N H T)) ||outputs - targets||^2 of all, also as a share of the targets' power."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from reprune.math.ranks import Alone
from reprune.math.reconstruction_error import Error, ErrorMeter

_N, _T, _H = 5, 4, 3


def _pair() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(_N, _T, _H, generator=random), torch.randn(_N, _T, _H, generator=random)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_of_any_size_give_the_papers_error(batch: int) -> None:
    outputs, targets = _pair()
    meter = ErrorMeter()
    for some, wanted in zip(outputs.split(batch), targets.split(batch), strict=True):
        meter.update(some, wanted)
    difference = sum((a - b) ** 2 for a, b in zip(outputs.flatten().tolist(), targets.flatten().tolist(), strict=True))
    power = sum(value**2 for value in targets.flatten().tolist())
    assert meter.error().normalized == pytest.approx(difference / (_N * _H * _T), rel=1e-6)
    assert meter.error().relative == pytest.approx(difference / power, rel=1e-6)


def test_nothing_is_read_until_the_error_is_asked_for() -> None:
    """Reading waits for a GPU, even for what it was given after the sums."""
    with FakeTensorMode():
        meter = ErrorMeter(torch.ones(2))
        for _ in range(3):
            meter.update(torch.ones(1, 2, 2), torch.zeros(1, 2, 2))
        with pytest.raises(DataDependentOutputException):
            meter.error()


def test_an_error_may_be_asked_for_more_than_once() -> None:
    meter = ErrorMeter()
    for value in (1.0, 2.0, 3.0):
        meter.update(torch.full((1, 2, 2), value), torch.full((1, 2, 2), 2 * value))
    assert meter.error() == meter.error() == Error(56.0 / 12, 0.25)


def test_equal_outputs_have_no_error() -> None:
    outputs, _ = _pair()
    meter = ErrorMeter()
    meter.update(outputs, outputs.clone())
    assert meter.error() == Error(0.0, 0.0)


def test_without_a_batch_there_is_no_error() -> None:
    assert ErrorMeter().error() == Error(0.0, 0.0)


def test_sums_do_not_lose_small_batches_after_large_ones() -> None:
    meter = ErrorMeter()
    meter.update(torch.full((1, 1, 1), 1e5), torch.zeros(1, 1, 1))
    for _ in range(1000):
        meter.update(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    assert meter.error().normalized == pytest.approx((1e10 + 1000) / 1001, rel=1e-12)


def test_sums_do_not_lose_small_numbers_beside_large_ones() -> None:
    """2^24 + 1 is not a float32."""
    meter = ErrorMeter(torch.ones(2))
    meter.update(torch.zeros(1, 1, 2), torch.tensor([[[4096.0, 1.0]]]))
    assert meter.error() == Error((2**24 + 1) / 2, 1.0, (2**24 + 1) / 2)


def test_low_precision_is_compared_in_float32() -> None:
    """129 takes all of bfloat16's eight bits; 129.5 and its square take more."""
    outputs, targets = (torch.full((1, 64, 64), value, dtype=torch.bfloat16) for value in (129.0, -0.5))
    meter = ErrorMeter()
    meter.update(outputs, targets)
    assert meter.error() == Error(129.5**2, 129.5**2 / 0.25)


def test_the_share_of_targets_is_the_same_however_small_they_are() -> None:
    meter = ErrorMeter()
    meter.update(torch.full((1, 2, 2), 2.0**-20), torch.full((1, 2, 2), 2.0**-19))
    assert meter.error().relative == 0.25


def test_states_are_told_apart_by_the_standardized_error_where_there_is_one() -> None:
    plain, standardized = Error(1.0, 2.0), Error(1.0, 2.0, 3.0)
    assert (plain.judged, plain.in_measure(False)) == (1.0, 2.0)
    assert (standardized.judged, standardized.in_measure(False), standardized.in_measure(True)) == (3.0, 2.0, 3.0)
    assert Error.of_predictions(0.5) == Error(0.5, 0.5)


def test_what_several_processes_have_seen_is_one_mean() -> None:
    class Two(Alone):
        """The other process has seen twice as much, with the same sum of differences."""

        def add(self, values: Sequence[float]) -> list[float]:
            difference, scaled, target, count = values
            return [2 * difference, 2 * scaled, 3 * target, 3 * count]

    outputs, targets = _pair()
    meter = ErrorMeter(torch.ones(_H))
    meter.update(outputs, targets)
    alone, both = meter.error(), meter.error(Two())
    assert alone.standardized is not None
    assert both.normalized == pytest.approx(2 / 3 * alone.normalized)
    assert both.relative == pytest.approx(2 / 3 * alone.relative)
    assert both.standardized == pytest.approx(2 / 3 * alone.standardized)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_make_an_error_that_is_not(value: float) -> None:
    outputs, targets = _pair()
    meter = ErrorMeter()
    meter.update(outputs.index_fill(0, torch.tensor([2]), value), targets)
    assert not meter.error().finite
    assert Error(1.0, 1.0).finite
    assert not Error(math.inf, 0.0).finite


def test_outputs_that_carry_gradients_leave_no_graph_behind() -> None:
    outputs, targets = _pair()
    meter = ErrorMeter()
    meter.update(outputs.requires_grad_(), targets)
    assert isinstance(meter.error().normalized, float)
