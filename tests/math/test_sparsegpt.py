"""SparseGPT prunes and updates as the formula says, and damps a Gram matrix that is singular."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math import sparsegpt
from reprune.math.patterns import NM, Pattern, Unstructured
from reprune.math.sparsegpt import SparseGPT, _upper_factor
from reprune.math.statistics import Gram
from tests.math.test_pruners import _CPU, _inputs, _mask_of, _prune, _weights, patterns


def _sparsegpt_twin(
    W: Tensor, H: Tensor, pattern: Pattern, block_size: int, damping: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Column by column, in float64; H_F^-1 is computed anew for the columns F not yet passed.

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


@pytest.mark.parametrize("pattern", [NM(2, 3), NM(3, 5), NM(10, 20)], ids=str)
@pytest.mark.parametrize("block_size", [16, 128])
def test_sparsegpt_prunes_groups_of_any_length_as_the_formula_says(pattern: NM, block_size: int) -> None:
    """Also groups that do not end where a narrow sweep ends."""
    weights, X = _weights(5, columns=60), _inputs(60)
    (found,) = _prune(SparseGPT(block_size=block_size), weights, X, pattern)
    expected, mask = _sparsegpt_twin(weights[0], X.double().T @ X.double(), pattern, block_size)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-3, atol=1e-4)


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
    """What a GPU does in place of a loop over columns gives the same weights and errors."""
    random = torch.Generator().manual_seed(columns)
    X = _inputs(columns)
    U = torch.linalg.cholesky(torch.linalg.inv(X.T @ X), upper=True)
    W = torch.randn(columns, rows, generator=random)
    scales = (torch.rand(columns, rows, generator=random) < 0.5) / U.diagonal().unsqueeze(1)
    found = []
    for sweep in (sparsegpt._one_by_one_, sparsegpt._at_once_):
        weights, errors = W.clone(), torch.empty_like(W)
        sweep(weights, errors, scales, U)
        found.append((weights * (scales == 0), errors))  # pruned weights are set to zero, whatever is left there
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


@pytest.mark.parametrize("damping", [1e-4, 0.1, 1.0, 2.0])
def test_sparsegpt_uses_the_damping_it_was_given(damping: float) -> None:
    (weight,), X = _weights(6, columns=16), _inputs(16)
    (pruned,) = _prune(SparseGPT(damping=damping), [weight], X, Unstructured(0.5))
    expected, mask = _sparsegpt_twin(weight, X.double().T @ X.double(), Unstructured(0.5), 128, damping)
    assert torch.equal(pruned.mask, mask)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)
    assert pruned.notes == ()


@pytest.mark.parametrize("block_size", [4, 7, 16, 128])
def test_the_block_size_does_not_change_an_n_m_result(block_size: int) -> None:
    weights, X = _weights(6, columns=16), _inputs(16)
    (found,) = _prune(SparseGPT(block_size=block_size), weights, X, NM(2, 4))
    (expected,) = _prune(SparseGPT(block_size=16), weights, X, NM(2, 4))
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-5)


@patterns
@pytest.mark.parametrize("size", [1.0, 0.03])
def test_weights_of_an_input_that_is_always_zero_become_zero_and_disturb_no_other(
    pattern: Pattern, size: float
) -> None:
    """Its 1 on the diagonal counts in the mean that damping is a share of, which shows where inputs are small."""
    (weight,), X = _weights(6, columns=16), size * _inputs(16)
    X[:, [2, 3, 9]] = 0.0
    (pruned,) = _prune(SparseGPT(block_size=8), [weight], X, pattern)
    assert (pruned.weight[:, [2, 3, 9]] == 0).all()
    assert pruned.notes == ("3 of 16 inputs are always 0: all their weights were set to 0 too",)
    expected, mask = _sparsegpt_twin(weight, X.double().T @ X.double(), pattern, 8)
    kept = [column for column in range(16) if column not in (2, 3, 9)]
    assert torch.equal(pruned.mask[:, kept], mask[:, kept])
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)


def test_one_input_of_many_that_is_always_zero_is_not_worth_a_note() -> None:
    """As in Gemma 3, whose norms multiply a feature or two by 0 in nearly every block."""
    (weight,), X = _weights(4, columns=128), _inputs(128)
    X[:, 5] = 0.0
    (pruned,) = _prune(SparseGPT(), [weight], X, Unstructured(0.5))
    assert (pruned.weight[:, 5] == 0).all()
    assert pruned.notes == ()


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
    )  # with three tokens, the other half can make up for all of it
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


def test_a_gram_matrix_that_no_damping_makes_definite_is_refused() -> None:
    gram = Gram(4, _CPU)
    gram.matrix.sub_(10 * torch.eye(4))
    with pytest.raises(NumericalError, match="is not positive definite even with damping of 1 x"):
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
