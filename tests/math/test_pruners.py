"""Each pruner removes exactly the weights that its paper's formula says; test_sparsegpt.py has more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.magnitude import Magnitude
from reprune.math.patterns import NM, Pattern, Unstructured
from reprune.math.pruner import Pruned, Pruner
from reprune.math.sparsegpt import SparseGPT
from reprune.math.statistics import Gram, SquaredNorms, Statistics
from reprune.math.wanda import Wanda
from reprune.math.weight_update import WeightUpdate

_CPU = torch.device("cpu")
_PATTERNS = [Unstructured(0.5), Unstructured(0.3), NM(2, 4), NM(4, 8)]
_PRUNERS: list[Pruner[Statistics]] = [Magnitude(), Wanda(), SparseGPT(block_size=8), WeightUpdate(Wanda())]

patterns = pytest.mark.parametrize("pattern", _PATTERNS, ids=str)
pruners = pytest.mark.parametrize("pruner", _PRUNERS, ids=lambda pruner: type(pruner).__name__)


def _inputs(columns: int, tokens: int = 200, seed: int = 0) -> Tensor:
    """Inputs (tokens, columns) whose columns differ in scale and are correlated."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.eye(columns) + 0.4 * torch.randn(columns, columns, generator=random)
    scales = 0.2 + 2 * torch.rand(columns, generator=random)
    return torch.randn(tokens, columns, generator=random) @ mixing * scales


def _weights(*rows: int, columns: int, seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(count, columns, generator=random) for count in rows]


def _prune(pruner: Pruner[Statistics], weights: Sequence[Tensor], X: Tensor, pattern: Pattern) -> list[Pruned]:
    statistics = pruner.statistics(X.shape[1], _CPU)
    statistics.update(X)
    return pruner.prune(weights, statistics, pattern)


def _lowest(scores: Tensor, count: int) -> list[tuple[int, int]]:
    """The places of the lowest scores of a matrix (rows, columns)."""
    places = [(row, column) for row in range(scores.shape[0]) for column in range(scores.shape[1])]
    return sorted(places, key=lambda place: float(scores[place]))[:count]


def _mask_of(scores: Tensor, pattern: Pattern, by_row: bool) -> Tensor:
    """The twins' mask: drop the lowest scores of the whole matrix, of each row, or of each group of a row."""
    rows, columns = scores.shape
    height = 1 if by_row or isinstance(pattern, NM) else rows
    width = pattern.of if isinstance(pattern, NM) else columns
    count = width - pattern.kept if isinstance(pattern, NM) else round(pattern.sparsity * height * width)
    mask = torch.ones(rows, columns, dtype=torch.bool)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            for row, column in _lowest(scores[top : top + height, left : left + width], count):
                mask[top + row, left + column] = False
    return mask


def _magnitude_twin(W: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    mask = _mask_of(W.double().abs(), pattern, by_row=False)
    return torch.where(mask, W, 0.0), mask


def _wanda_twin(W: Tensor, X: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """|w_ij| ||x_j||, compared within row i."""
    scores = torch.empty(W.shape, dtype=torch.float64)
    for row in range(W.shape[0]):
        for column in range(W.shape[1]):
            scores[row, column] = abs(float(W[row, column])) * float(X[:, column].double().norm())
    mask = _mask_of(scores, pattern, by_row=True)
    return torch.where(mask, W, 0.0), mask


@patterns
def test_magnitude_drops_the_smallest_weights_of_each_matrix(pattern: Pattern) -> None:
    weights = _weights(6, 10, columns=16)
    for weight, pruned in zip(weights, _prune(Magnitude(), weights, _inputs(16), pattern), strict=True):
        expected, mask = _magnitude_twin(weight, pattern)
        assert torch.equal(pruned.mask, mask)
        assert torch.equal(pruned.weight, expected)


@patterns
def test_wanda_drops_the_smallest_products_of_weight_and_input_norm_within_each_row(pattern: Pattern) -> None:
    weights, X = _weights(6, 10, columns=16), _inputs(16)
    for weight, pruned in zip(weights, _prune(Wanda(), weights, X, pattern), strict=True):
        expected, mask = _wanda_twin(weight, X, pattern)
        assert torch.equal(pruned.mask, mask)
        assert torch.equal(pruned.weight, expected)


def test_wanda_and_magnitude_differ_where_the_inputs_do() -> None:
    W = torch.tensor([[1.0, 2.0]])
    X = torch.tensor([[10.0, 1.0]])
    assert _prune(Wanda(), [W], X, Unstructured(0.5))[0].mask.tolist() == [[True, False]]
    assert _prune(Magnitude(), [W], X, Unstructured(0.5))[0].mask.tolist() == [[False, True]]


@pruners
@patterns
def test_a_group_of_matrices_is_pruned_as_each_of_them_alone(pruner: Pruner[Statistics], pattern: Pattern) -> None:
    weights, X = _weights(3, 8, 1, columns=16), _inputs(16)
    for weight, together in zip(weights, _prune(pruner, weights, X, pattern), strict=True):
        (alone,) = _prune(pruner, [weight], X, pattern)
        assert torch.equal(together.mask, alone.mask)
        torch.testing.assert_close(together.weight, alone.weight, rtol=1e-5, atol=1e-6)


@pruners
@patterns
def test_what_is_pruned_is_plus_zero_and_what_comes_out_is_whole(pruner: Pruner[Statistics], pattern: Pattern) -> None:
    weights = _weights(6, 4, columns=16)
    weights[0][:, :4] *= -1  # negative weights must not leave -0.0
    for weight, pruned in zip(weights, _prune(pruner, weights, _inputs(16), pattern), strict=True):
        gone = pruned.weight[~pruned.mask]
        assert (gone == 0).all()
        assert not torch.signbit(gone).any()
        assert pruned.weight.shape == pruned.mask.shape == weight.shape
        assert pruned.weight.dtype == torch.float32
        assert pruned.mask.dtype == torch.bool
        assert pruned.weight.is_contiguous()
        assert pruned.mask.is_contiguous()
        assert torch.isfinite(pruned.weight).all()


@pruners
@patterns
def test_exactly_the_share_asked_for_goes(pruner: Pruner[Statistics], pattern: Pattern) -> None:
    (pruned,) = _prune(pruner, _weights(10, columns=16), _inputs(16), pattern)
    # In each block of 8 columns, or each row of 16, rounding changes the count by at most half a weight.
    assert abs(int((~pruned.mask).sum()) - pattern.sparsity * 160) <= 5
    if isinstance(pattern, NM):
        assert (pruned.mask.reshape(-1, pattern.of).sum(dim=1) == pattern.kept).all()


@pruners
@patterns
def test_weights_and_statistics_are_left_as_they_are(pruner: Pruner[Statistics], pattern: Pattern) -> None:
    weights, X = _weights(6, 4, columns=16), _inputs(16)
    X[:, 3] = 0.0
    statistics = pruner.statistics(16, _CPU)
    statistics.update(X)
    before = [weight.clone() for weight in weights]
    held = {key: value.clone() for key, value in vars(statistics).items() if isinstance(value, Tensor)}
    pruner.prune(weights, statistics, pattern)
    assert all(torch.equal(weight, saved) for weight, saved in zip(weights, before, strict=True))
    assert all(torch.equal(getattr(statistics, key), value) for key, value in held.items())


@pruners
def test_the_same_input_gives_the_same_bits(pruner: Pruner[Statistics]) -> None:
    weights, X = _weights(6, 4, columns=16), _inputs(16)
    first, second = (_prune(pruner, weights, X, Unstructured(0.5)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.mask, other.mask)


@pruners
def test_a_matrix_seen_transposed_is_pruned_as_a_contiguous_one(pruner: Pruner[Statistics]) -> None:
    (weight,), X = _weights(6, columns=16), _inputs(16)
    (seen,) = _prune(pruner, [weight.T.contiguous().T], X, NM(2, 4))
    (whole,) = _prune(pruner, [weight], X, NM(2, 4))
    assert torch.equal(seen.weight, whole.weight)
    assert torch.equal(seen.mask, whole.mask)


def test_wanda_drops_the_weights_of_an_input_that_is_always_zero_first() -> None:
    X = _inputs(16)
    X[:, :8] = 0.0
    (pruned,) = _prune(Wanda(), _weights(6, columns=16), X, Unstructured(0.5))
    assert not pruned.mask[:, :8].any()
    assert pruned.mask[:, 8:].all()


def test_inputs_that_are_all_zero_are_pruned_without_a_nan() -> None:
    weights, X = _weights(6, columns=16), torch.zeros(10, 16)
    for pruner in _PRUNERS:
        (pruned,) = _prune(pruner, weights, X, NM(2, 4))
        assert torch.isfinite(pruned.weight).all()
        assert int(pruned.mask.sum()) == 48


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    X = _inputs(16)
    X[5, 3] = value
    for pruner in (Wanda(), SparseGPT()):
        with pytest.raises(NumericalError, match="NaN or infinite"):
            _prune(pruner, _weights(6, columns=16), X, Unstructured(0.5))


@pruners
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(pruner: Pruner[Statistics], value: float) -> None:
    (weight,) = _weights(6, columns=16)
    weight[2, 5] = value
    with pytest.raises(NumericalError):
        _prune(pruner, [weight], _inputs(16), Unstructured(0.5))


def test_each_pruner_asks_for_no_more_statistics_than_it_needs() -> None:
    assert type(Magnitude().statistics(4, _CPU)) is Statistics
    assert type(Wanda().statistics(4, _CPU)) is SquaredNorms
    assert type(SparseGPT().statistics(4, _CPU)) is Gram
