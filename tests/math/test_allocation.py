"""A sparsity is shared out over blocks: it holds for the whole, and each block gets what it can bear."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprune.math.allocation import MOST, STEP, _error, by_error, by_outliers, outlier_share

counts = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)
shares = st.floats(0.005, 0.98)


def _mean(found: list[float], weights: list[int]) -> float:
    return sum(value * count for value, count in zip(found, weights, strict=True)) / sum(weights)


def test_outliers_are_scores_of_many_times_the_mean_of_the_whole_block() -> None:
    one = torch.tensor([[1.0, -11.0, 2.0], [1.0, 1.0, 1.0]]), torch.tensor([1.0, 1.0, 20.0])
    other = torch.tensor([[0.1, -0.2], [0.1, 3.0], [0.1, 0.1]]), torch.tensor([2.0, 1.0])
    scores = [float(score) for weight, norms in (one, other) for score in (weight.abs() * norms).flatten()]
    mean = sum(scores) / 12
    for times in (0.1, 1.0, 2.0, 5.0):
        expected = sum(score > times * mean for score in scores) / 12
        assert outlier_share(lambda: [one, other], times) == pytest.approx(expected)
    assert outlier_share(lambda: [one], 1.0) > outlier_share(lambda: [one, (other[0] * 1e3, other[1])], 1.0)
    assert outlier_share(list, 2.0) == 0.0
    assert outlier_share(lambda: [(torch.ones(2, 2), torch.ones(2))], 1.0) == 0.0, "of scores alike none is an outlier"


def test_a_block_of_which_nothing_is_pruned_has_no_say_in_what_others_get() -> None:
    alone = by_outliers([0.01, 0.03, 0.02], [5, 5, 5], 0.6, 0.08)
    assert by_outliers([0.0, 0.01, 0.03, 0.02], [0, 5, 5, 5], 0.6, 0.08)[1:] == alone
    assert by_outliers([0.0, 0.3], [0, 0], 0.6, 0.08) == [0.6, 0.6]
    curve = [(0.5, 0.1), (0.6, 0.2), (0.7, 0.4)]
    assert by_error([curve, curve], [0, 0], 0.6) == [0.6, 0.6]
    steep = [(0.5, 0.1), (0.6, 0.3), (0.7, 0.9)]
    assert by_error([steep, curve, steep], [0, 5, 5], 0.6)[1:] == by_error([curve, steep], [5, 5], 0.6)


def test_blocks_that_pruning_costs_nothing_and_nearly_all_of_the_weights_are_shared_out_too() -> None:
    free = [(s, 0.0) for s in (0.5, 0.6, 0.7)]
    costly = [(0.5, 0.1), (0.6, 0.2), (0.7, 0.4)]
    assert by_error([free, costly], [5, 5], 0.6) == pytest.approx([0.7, 0.5])
    assert by_outliers([0.01, 0.02], [5, 5], 0.995, 0.01) == pytest.approx([0.995, 0.995])


@given(counts, st.data(), shares, st.floats(0.01, 0.3))
def test_by_outliers_the_whole_has_the_sparsity_and_more_outliers_mean_denser(
    weights: list[int], data: st.DataObject, sparsity: float, spread: float
) -> None:
    outliers = data.draw(st.lists(st.floats(0.0, 0.1), min_size=len(weights), max_size=len(weights)))
    found = by_outliers(outliers, weights, sparsity, spread)
    assert _mean(found, weights) == pytest.approx(sparsity, abs=2e-6)
    assert all(0.0 < value <= MOST for value in found)
    for (one, a), (other, b) in itertools.combinations(zip(outliers, found, strict=True), 2):
        assert (one - other) * (b - a) >= -1e-6
    assert max(found) - min(found) <= 2 * spread + 1e-6


def test_by_outliers_is_the_papers_formula_for_blocks_alike() -> None:
    outliers, spread = [0.01, 0.03, 0.02], 0.08
    stretched = [(value - 0.01) / 0.02 * 2 * spread for value in outliers]
    density = [value - sum(stretched) / 3 + (1 - 0.6) for value in stretched]
    found = by_outliers(outliers, [5, 5, 5], 0.6, spread)
    assert found == pytest.approx([1 - value for value in density], abs=2e-6)


@given(counts, st.data(), st.floats(0.2, 0.8))
def test_by_error_the_whole_has_the_sparsity_and_no_block_leaves_what_was_measured(
    weights: list[int], data: st.DataObject, sparsity: float
) -> None:
    curves = []
    for _ in weights:
        rises = data.draw(st.tuples(*[st.floats(1e-6, 1.0)] * 3))
        errors = list(itertools.accumulate(rises))
        curves.append(list(zip((sparsity - 0.1, sparsity, sparsity + 0.1), errors, strict=True)))
    found = by_error(curves, weights, sparsity)
    assert _mean(found, weights) == pytest.approx(sparsity, abs=2e-6)
    assert all(sparsity - 0.1 - 1e-5 <= value <= sparsity + 0.1 + 1e-5 for value in found)


def test_by_error_no_weights_could_move_to_lower_the_sum() -> None:
    """The twin: of all shares on a grid with the same total, those with the least sum of errors."""
    levels = (0.4, 0.5, 0.6)
    curves = [[(s, scale * math.exp(rate * s)) for s in levels] for scale, rate in ((1.0, 2.0), (0.2, 8.0), (0.5, 4.0))]
    weights = [100, 200, 100]

    def total(found: tuple[float, ...]) -> float:
        return sum(
            scale * math.exp(rate * s)
            for (scale, rate), s in zip(((1.0, 2.0), (0.2, 8.0), (0.5, 4.0)), found, strict=True)
        )

    grid = [0.4 + number * 0.01 for number in range(21)]
    best = min(
        total((a, b, c))
        for a, b in itertools.product(grid, grid)
        if 0.4 <= (c := (0.5 * 400 - 100 * a - 200 * b) / 100) <= 0.6
    )
    found = by_error(curves, weights, 0.5)
    assert total(tuple(found)) <= best * (1 + 10 * STEP)
    assert found[1] < 0.5 < found[0], "where errors rise faster less is pruned"


@pytest.mark.parametrize("spread", [0.0, 1e-17, 1e-9])
def test_by_error_levels_as_near_as_numbers_are_leave_all_at_the_whole(spread: float) -> None:
    levels = 0.5 - spread, 0.5, 0.5 + spread
    curves = [list(zip(levels, errors, strict=True)) for errors in ((0.0, 0.1, 0.2), (0.3, 0.3, 0.3))]
    assert by_error(curves, [10, 20], 0.5) == pytest.approx([0.5, 0.5], abs=1e-5)


@pytest.mark.parametrize("error", [0.1, 0.9])
def test_by_error_the_first_weights_go_where_they_cost_least_however_large_the_error_is_there(error: float) -> None:
    costly, cheap = [(0.5, 0.1), (0.7, 0.4)], [(0.5, error), (0.7, error + 0.01)]
    found = by_error([costly, costly, cheap], [5, 5, 5], 0.5 + STEP / 3)
    assert found == pytest.approx([0.5, 0.5, 0.5 + STEP], abs=2e-6)


def test_the_logarithm_of_an_error_is_straight_between_what_was_measured_and_goes_on_beyond_it() -> None:
    curve = [(0.4, 0.01), (0.5, 0.02), (0.6, 0.32)]
    found = [_error(curve, sparsity) for sparsity in (0.4, 0.45, 0.5, 0.55, 0.6, 0.65)]
    assert found == pytest.approx([0.01, 0.01 * 2**0.5, 0.02, 0.08, 0.32, 1.28])


def test_by_error_the_last_weight_costs_as_much_in_a_large_block_as_in_a_small_one() -> None:
    """With errors exp(8 s) in both and four times the weights in one, slopes are as 4 to 1: log(4) / 8 apart."""
    curve = [(s, math.exp(8 * s)) for s in (0.3, 0.5, 0.7)]
    small, large = by_error([curve, curve], [100, 400], 0.5)
    assert large - small == pytest.approx(math.log(4) / 8, abs=3 * STEP)
