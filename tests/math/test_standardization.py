"""A scale is sqrt(variance + FLOOR * mean variance) of each feature; a standardized loss does not depend on units."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reprune.math.ranks import ALONE, Alone
from reprune.math.reconstruction_error import ErrorMeter
from reprune.math.standardization import FLOOR, FeatureStatistics, FeatureSums

_CPU = torch.device("cpu")


def _states(seed: int = 0, features: int = 6) -> Tensor:
    """States (samples, tokens, features), each feature of a different size, one of them massive."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(5, 7, features, generator=random) * torch.logspace(-2, 2, features)
    return states + 100.0 * torch.randn(features, generator=random)


def _statistics(targets: Tensor, batch: int = 2) -> FeatureStatistics:
    sums = FeatureSums()
    for some in targets.split(batch):
        sums.update(some)
    return sums.statistics(targets.shape[-1], _CPU, ALONE)


def _scale(targets: Tensor, batch: int = 2) -> Tensor:
    return _statistics(targets, batch).scale


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_is_the_standard_deviation_over_all_tokens(batch: int) -> None:
    targets = _states()
    variances = [statistics.pvariance(column) for column in targets.flatten(0, 1).double().T.tolist()]
    mean = statistics.fmean(variances)
    wanted = torch.tensor([(variance + FLOOR * mean) ** 0.5 for variance in variances])
    assert torch.allclose(_scale(targets, batch), wanted, rtol=1e-5)


@pytest.mark.parametrize("own", [2, 0])
def test_it_is_over_the_tokens_of_all_processes(own: int) -> None:
    """Also if this process has seen none."""

    class Two(Alone):
        def sum_(self, tensors: Sequence[Tensor]) -> None:
            for tensor in tensors:  # counts, sums, sums of squares of what the other has seen
                rows = targets[own:].flatten(0, 1).double()
                tensor += torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(dim=0), rows.square().sum(dim=0)])

    targets = _states()
    part = FeatureSums()
    for some in targets[:own]:
        part.update(some[None])
    found, whole = part.statistics(targets.shape[-1], _CPU, Two()), _statistics(targets)
    torch.testing.assert_close(found.scale, whole.scale)
    assert found.power == pytest.approx(whole.power)


def test_a_large_mean_does_not_hide_a_small_variance() -> None:
    targets = torch.tensor([1e6, 1e6 + 1.0]).reshape(1, 2, 1)
    assert float(_scale(targets)) == pytest.approx((0.25 * (1 + FLOOR)) ** 0.5, rel=1e-6)


def test_features_that_never_vary_do_not_decide() -> None:
    targets = _states()
    targets[..., 0] = 3.0
    scale = _scale(targets)
    assert scale[0] ** 2 == pytest.approx(FLOOR * float((scale**2).mean()) / (1 + FLOOR), rel=1e-4)


def test_targets_that_are_all_the_same_have_a_scale_of_one() -> None:
    assert torch.equal(_scale(torch.full((2, 3, 4), 5.0)), torch.ones(4))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_power_and_the_largest_share_of_it_are_those_of_the_plain_formula(batch: int) -> None:
    targets = _states(features=4)
    columns = [[number * number for number in column] for column in targets.flatten(0, 1).double().T.tolist()]
    powers = [statistics.fmean(column) for column in columns]
    found = _statistics(targets, batch)
    assert found.power == pytest.approx(statistics.fmean(powers))
    assert found.largest_share == pytest.approx(max(powers) / sum(powers))


def test_of_nothing_no_feature_has_a_share() -> None:
    found = FeatureSums().statistics(3, _CPU, ALONE)
    assert (found.power, found.largest_share) == (0.0, 0.0)
    assert torch.equal(found.scale, torch.ones(3))


@given(st.integers(0, 100), st.floats(1e-3, 1e3))
def test_the_error_is_blind_to_units(seed: int, unit: float) -> None:
    targets = _states(seed)
    outputs = targets + _states(seed + 1)

    def error(outputs: Tensor, targets: Tensor) -> float:
        meter = ErrorMeter(_scale(targets))
        meter.update(outputs, targets)
        found = meter.error().standardized
        assert found is not None
        return found

    assert error(unit * outputs, unit * targets) == pytest.approx(error(outputs, targets), rel=1e-3)


def test_each_feature_counts_alike() -> None:
    """An error of a tenth of each feature's deviation gives 0.01, whatever the features' sizes."""
    targets, scale = _states(), torch.linspace(1.0, 1e4, 6)
    meter = ErrorMeter(scale)
    meter.update(targets[:3] + 0.1 * scale, targets[:3])
    meter.update(targets[3:] - 0.1 * scale, targets[3:])
    assert meter.error().standardized == pytest.approx(0.01, rel=1e-3)
    assert meter.error().normalized == pytest.approx(float((0.1 * scale).square().mean()), rel=1e-3)
