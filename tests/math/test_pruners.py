"""Each pruner takes the weights and makes the updates that its paper's formula says, to the last weight."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math import sparsegpt
from reprune.math.magnitude import Magnitude
from reprune.math.patterns import NM, Pattern, Unstructured
from reprune.math.pruner import Pruned, Pruner
from reprune.math.sparsegpt import SparseGPT, _upper_factor
from reprune.math.statistics import Gram, SquaredNorms, Statistics
from reprune.math.wanda import Wanda

_CPU = torch.device("cpu")
_PATTERNS = [Unstructured(0.5), Unstructured(0.3), NM(2, 4), NM(4, 8)]
_PRUNERS: list[Pruner[Statistics]] = [Magnitude(), Wanda(), SparseGPT(block_size=8)]

patterns = pytest.mark.parametrize("pattern", _PATTERNS, ids=str)
pruners = pytest.mark.parametrize("pruner", _PRUNERS, ids=lambda pruner: type(pruner).__name__)


def _inputs(columns: int, tokens: int = 200, seed: int = 0) -> Tensor:
    """Inputs (tokens, columns) whose columns differ in scale and go along with each other."""
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
    """The twins' mask: drop the lowest scores, of the whole, of each row or of each group of a row."""
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


def _sparsegpt_twin(
    W: Tensor, H: Tensor, pattern: Pattern, block_size: int, damping: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Column by column, the inverse over the columns F not yet passed: H_F^-1, by itself, in float64.

    cost = w_p^2 / [H_F^-1]_pp; pruning p updates w_F -= w_p / [H_F^-1]_pp * H_F^-1[:, p].
    """
    W, H = W.double().clone(), H.double().clone()
    rows, columns = W.shape
    for column in range(columns):  # an input that is always zero: its weights do nothing
        if H[column, column] == 0:
            H[column, column] = 1.0
            W[:, column] = 0.0
    H = H + damping * H.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(H[column:, column:]) for column in range(columns)]
    mask = torch.ones(rows, columns, dtype=torch.bool)
    width = pattern.of if isinstance(pattern, NM) else block_size
    for column in range(columns):
        if column % width == 0:
            part = slice(column, min(column + width, columns))
            costs = torch.stack([W[:, place] ** 2 / inverses[place][0, 0] for place in range(part.start, part.stop)], 1)
            mask[:, part] = _mask_of(costs, pattern, by_row=False)
        inverse = inverses[column]
        for row in range(rows):
            if not mask[row, column]:
                W[row, column:] -= W[row, column] / inverse[0, 0] * inverse[:, 0]
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


@pytest.mark.parametrize("pattern", [NM(2, 3), NM(3, 5), NM(10, 20)], ids=str)
@pytest.mark.parametrize("block_size", [16, 128])
def test_sparsegpt_prunes_groups_of_any_length_as_the_formula_says(pattern: NM, block_size: int) -> None:
    """Also such as do not end where one of its narrow sweeps does."""
    weights, X = _weights(5, columns=60), _inputs(60)
    (found,) = _prune(SparseGPT(block_size=block_size), weights, X, pattern)
    expected, mask = _sparsegpt_twin(weights[0], X.double().T @ X.double(), pattern, block_size)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-3, atol=1e-4)


def test_wanda_and_magnitude_differ_where_the_inputs_do() -> None:
    W = torch.tensor([[1.0, 2.0]])
    X = torch.tensor([[10.0, 1.0]])
    assert _prune(Wanda(), [W], X, Unstructured(0.5))[0].mask.tolist() == [[True, False]]
    assert _prune(Magnitude(), [W], X, Unstructured(0.5))[0].mask.tolist() == [[False, True]]


@patterns
@pytest.mark.parametrize(
    ("columns", "block_size"),
    [(24, 128), (24, 24), (24, 8), (24, 16), (24, 10), (24, 1)],
    ids=["one block", "just one", "three", "a shorter last", "across groups", "a column each"],
)
def test_sparsegpt_prunes_and_updates_as_the_formula_says(pattern: Pattern, columns: int, block_size: int) -> None:
    weights, X = _weights(5, 9, columns=columns), _inputs(columns)
    found = _prune(SparseGPT(block_size=block_size), weights, X, pattern)
    H = X.double().T @ X.double()
    for weight, pruned in zip(weights, found, strict=True):
        expected, mask = _sparsegpt_twin(weight, H, pattern, block_size)
        assert torch.equal(pruned.mask, mask)
        torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)
        assert pruned.notes == ()


@pytest.mark.parametrize(("columns", "rows"), [(1, 5), (4, 3), (16, 40), (32, 7)])
def test_columns_are_swept_at_once_as_they_are_one_by_one(columns: int, rows: int) -> None:
    """What a GPU does in place of a loop over columns: the same weights and errors."""
    random = torch.Generator().manual_seed(columns)
    X = _inputs(columns)
    U = torch.linalg.cholesky(torch.linalg.inv(X.T @ X), upper=True)
    W = torch.randn(columns, rows, generator=random)
    scales = (torch.rand(columns, rows, generator=random) < 0.5) / U.diagonal().unsqueeze(1)
    found = []
    for sweep in (sparsegpt._one_by_one_, sparsegpt._at_once_):
        weights, errors = W.clone(), torch.empty_like(W)
        sweep(weights, errors, scales, U)
        found.append((weights * (scales == 0), errors))  # what is pruned becomes zero, whatever is left there
    torch.testing.assert_close(found[0], found[1])


@patterns
@pytest.mark.parametrize("block_size", [128, 8, 10])
def test_sparsegpt_is_the_formulas_with_columns_at_once(
    pattern: Pattern, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsegpt, "_one_by_one_", sparsegpt._at_once_)
    weights, X = _weights(6, 10, columns=40), _inputs(40)
    for weight, pruned in zip(weights, _prune(SparseGPT(block_size=block_size), weights, X, pattern), strict=True):
        width = max(block_size // pattern.group, 1) * pattern.group
        expected, mask = _sparsegpt_twin(weight, X.double().T @ X.double(), pattern, width)
        assert torch.equal(pruned.mask, mask)
        torch.testing.assert_close(pruned.weight, expected.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("damping", [1e-4, 0.1, 1.0])
def test_sparsegpt_uses_the_damping_it_was_given(damping: float) -> None:
    (weight,), X = _weights(6, columns=16), _inputs(16)
    (pruned,) = _prune(SparseGPT(damping=damping), [weight], X, Unstructured(0.5))
    expected, mask = _sparsegpt_twin(weight, X.double().T @ X.double(), Unstructured(0.5), 128, damping)
    assert torch.equal(pruned.mask, mask)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)
    assert pruned.notes == ()


def test_sparsegpt_uses_a_damping_above_one_too() -> None:
    (weight,), X = _weights(6, columns=16), _inputs(16)
    (pruned,) = _prune(SparseGPT(damping=2.0), [weight], X, Unstructured(0.5))
    expected, mask = _sparsegpt_twin(weight, X.double().T @ X.double(), Unstructured(0.5), 128, 2.0)
    assert torch.equal(pruned.mask, mask)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block_size", [4, 7, 16, 128])
def test_the_block_size_does_not_change_an_n_m_result(block_size: int) -> None:
    weights, X = _weights(6, columns=16), _inputs(16)
    (found,) = _prune(SparseGPT(block_size=block_size), weights, X, NM(2, 4))
    (expected,) = _prune(SparseGPT(block_size=16), weights, X, NM(2, 4))
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-5)


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
    # Within each block of 8 columns, or each row of 16, half a weight is rounded away at most.
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


@patterns
def test_weights_of_an_input_that_is_always_zero_become_zero_and_disturb_no_other(pattern: Pattern) -> None:
    (weight,), X = _weights(6, columns=16), _inputs(16)
    X[:, [2, 3, 9]] = 0.0
    (pruned,) = _prune(SparseGPT(block_size=8), [weight], X, pattern)
    assert (pruned.weight[:, [2, 3, 9]] == 0).all()
    expected, mask = _sparsegpt_twin(weight, X.double().T @ X.double(), pattern, 8)
    kept = [column for column in range(16) if column not in (2, 3, 9)]
    assert torch.equal(pruned.mask[:, kept], mask[:, kept])
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)


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


def test_the_damping_is_raised_for_a_singular_gram_matrix_and_that_is_noted() -> None:
    weights, X = _weights(6, 3, columns=16), torch.ones(50, 16)
    found = _prune(SparseGPT(damping=1e-10), weights, X, Unstructured(0.5))
    for pruned in found:
        (note,) = pruned.notes
        assert "damping raised from 1e-10 to" in note
        assert torch.isfinite(pruned.weight).all()
        assert (pruned.weight[~pruned.mask] == 0).all()


def test_raised_damping_still_makes_up_for_what_was_pruned() -> None:
    (weight,), X = (
        _weights(6, columns=16),
        _inputs(16, tokens=3),
    )  # three tokens: the other half can stand in wholly
    (pruned,) = _prune(SparseGPT(damping=1e-12), [weight], X, Unstructured(0.5))
    (note,) = pruned.notes
    assert "near singular" in note
    outputs = X.double() @ weight.double().T
    error = (outputs - X.double() @ pruned.weight.double().T).square().sum()
    assert error < 1e-6 * outputs.square().sum()


def test_raised_damping_takes_the_place_of_the_lower_one() -> None:
    gram = Gram(4, _CPU)
    gram.matrix.add_(torch.eye(4) + 1.5 * torch.eye(4).flip(0))  # its lowest eigenvalue is -0.5, its mean diagonal 1
    (weight,) = _weights(5, columns=4)
    (pruned,) = SparseGPT().prune([weight], gram, NM(2, 4))
    assert pruned.notes == ("damping raised from 0.01 to 1: the Gram matrix is near singular",)
    expected, mask = _sparsegpt_twin(weight, gram.matrix, NM(2, 4), 128, damping=1.0)
    assert torch.equal(pruned.mask, mask)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 2, 127, 128, 129, 300, 513])
def test_the_factor_by_halves_is_the_cholesky_factor_of_the_inverse(columns: int) -> None:
    X = _inputs(columns, tokens=2 * columns).double()
    H = X.T @ X
    factor = _upper_factor(H.float(), 0.01)
    assert factor is not None
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(factor.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(factor, factor.triu())


@pytest.mark.parametrize("where", [0, 150, 299])
def test_a_matrix_that_is_indefinite_in_any_of_its_parts_has_no_factor(where: int) -> None:
    H = torch.eye(300)
    H[where, where] = -1.0
    assert _upper_factor(H, 0.01) is None


def test_fewer_tokens_than_columns_need_no_raised_damping() -> None:
    weights, X = _weights(6, columns=32), _inputs(32, tokens=10)
    (pruned,) = _prune(SparseGPT(), weights, X, NM(2, 4))
    assert pruned.notes == ()
    expected, mask = _sparsegpt_twin(weights[0], X.double().T @ X.double(), NM(2, 4), 128)
    assert torch.equal(pruned.mask, mask)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-2, atol=1e-3)


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


def test_a_gram_matrix_that_no_damping_makes_definite_is_refused() -> None:
    gram = Gram(4, _CPU)
    gram.matrix.sub_(10 * torch.eye(4))
    with pytest.raises(NumericalError, match="indefinite even with damping 1 x"):
        SparseGPT().prune(_weights(2, columns=4), gram, Unstructured(0.5))


@patterns
@pytest.mark.parametrize("seed", range(4))
def test_sparsegpt_leaves_no_more_output_error_than_its_mask_alone(pattern: Pattern, seed: int) -> None:
    (weight,), X = _weights(8, columns=32, seed=seed), _inputs(32, seed=seed)
    (pruned,) = _prune(SparseGPT(block_size=16), [weight], X, pattern)
    outputs = X.double() @ weight.double().T
    updated = (outputs - X.double() @ pruned.weight.double().T).square().sum()
    masked = (outputs - X.double() @ weight.double().masked_fill(~pruned.mask, 0.0).T).square().sum()
    assert updated <= masked


def test_each_pruner_asks_for_no_more_statistics_than_it_needs() -> None:
    assert type(Magnitude().statistics(4, _CPU)) is Statistics
    assert type(Wanda().statistics(4, _CPU)) is SquaredNorms
    assert type(SparseGPT().statistics(4, _CPU)) is Gram
