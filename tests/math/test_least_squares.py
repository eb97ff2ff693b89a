"""Least squares finds, row by row, the best weights under a mask, and fits as closely as held-out inputs allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.least_squares import RIDGES, LeastSquares, quadratic_error, solve
from reprune.math.statistics import Paired

_CPU = torch.device("cpu")
_ROWS, _COLUMNS = (5, 3), 12


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _inputs(tokens: int, seed: int, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """A linear's inputs (tokens, columns) in the sparse and in the dense model: similar, but not the same."""
    mixing = torch.eye(_COLUMNS) + 0.3 * _random(_COLUMNS, _COLUMNS, seed=99)
    dense = _random(tokens, _COLUMNS, seed=seed) @ mixing
    return dense + noise * _random(tokens, _COLUMNS, seed=seed + 1), dense


def _paired(X: Tensor, Z: Tensor) -> Paired:
    paired = Paired(X.shape[1], _CPU)
    for start in range(0, len(X), 7):
        paired.update(X[start : start + 7], Z[start : start + 7])
    return paired


def _group() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Dense matrices, masks that keep half of each, and what a pruner without updates leaves."""
    dense = [_random(rows, _COLUMNS, seed=rows) for rows in _ROWS]
    masks = [one.abs() >= one.abs().median() for one in dense]
    return dense, masks, [one * mask for one, mask in zip(dense, masks, strict=True)]


def _twin(X: Tensor, Z: Tensor, dense: Tensor, mask: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """Solve each row by itself: its kept columns against the dense outputs, with the prior as further rows."""
    X, Z, dense, prior = X.double(), Z.double(), dense.double(), prior.double()
    penalty = (ridge * X.square().sum(dim=0).mean()).sqrt()
    found = torch.zeros_like(dense)
    for row in range(len(dense)):
        kept = mask[row]
        A = torch.cat([X[:, kept], penalty * torch.eye(int(kept.sum()), dtype=torch.float64)])
        b = torch.cat([Z @ dense[row], penalty * prior[row, kept]])
        found[row, kept] = torch.linalg.lstsq(A, b).solution
    return found


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 3.0])
def test_a_group_is_fitted_as_each_row_by_itself_would_be(ridge: float) -> None:
    X, Z = _inputs(80, seed=1)
    dense, masks, pruned = _group()
    fit = LeastSquares(ridge, iterations=40).refit(pruned, masks, dense, _paired(X, Z), _paired(*_inputs(30, seed=5)))
    assert fit.ridge == ridge
    for weight, D, mask, prior in zip(fit.weights, dense, masks, pruned, strict=True):
        torch.testing.assert_close(weight.double(), _twin(X, Z, D, mask, prior, ridge), rtol=1e-4, atol=1e-5)
        assert not weight[~mask].any()


def test_a_row_of_which_nothing_is_kept_stays_zero_and_hinders_no_other() -> None:
    X, Z = _inputs(80, seed=1)
    dense, masks, pruned = _group()
    masks[0][2], pruned[0][2] = False, 0.0
    fit = LeastSquares(0.1, iterations=20).refit(pruned, masks, dense, _paired(X, Z), _paired(*_inputs(30, seed=5)))
    for weight, D, mask, prior in zip(fit.weights, dense, masks, pruned, strict=True):
        torch.testing.assert_close(weight.double(), _twin(X, Z, D, mask, prior, 0.1), rtol=1e-4, atol=1e-5)


def test_a_ridge_that_is_given_has_twice_the_iterations_as_none_are_spent_on_others() -> None:
    X, Z = _inputs(80, seed=1)
    dense, masks, pruned = _group()
    paired = _paired(X, Z)
    fit = LeastSquares(0.1, iterations=2).refit(pruned, masks, dense, paired, _paired(*_inputs(30, seed=5)))
    G, right = paired.gram.matrix, torch.cat(dense) @ paired.cross.T
    start, ridge = torch.cat(pruned), 0.1 * float(G.diagonal().mean())
    assert torch.equal(torch.cat(fit.weights), solve(G, right, start, start, torch.cat(masks), ridge, 4))


def test_the_error_in_closed_form_is_that_of_the_outputs() -> None:
    X, Z = _inputs(50, seed=3)
    D, W, V = _random(4, _COLUMNS, seed=7), _random(4, _COLUMNS, seed=8), _random(4, _COLUMNS, seed=9)
    paired = _paired(X, Z)
    right = D @ paired.cross.T
    errors = [float((X @ one.T - Z @ D.T).double().square().sum()) for one in (W, V)]
    quadratic = [quadratic_error(one, paired.gram.matrix, right) for one in (W, V)]
    assert quadratic[0] - quadratic[1] == pytest.approx(errors[0] - errors[1], rel=1e-5)


def test_each_iteration_lowers_what_is_minimized() -> None:
    X, Z = _inputs(60, seed=11)
    dense, masks, pruned = _group()
    paired, ridge = _paired(X, Z), 0.5
    right = dense[0] @ paired.cross.T

    def objective(W: Tensor) -> float:
        return quadratic_error(W, paired.gram.matrix, right) + ridge * float((W - pruned[0]).square().sum())

    found = [
        objective(solve(paired.gram.matrix, right, pruned[0], pruned[0], masks[0], ridge, iterations))
        for iterations in range(8)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_inputs_that_have_nothing_in_common_are_solved_by_one_iteration_whatever_their_sizes() -> None:
    """The Jacobi preconditioner is the inverse of such a system."""
    diagonal, right, mask = torch.logspace(-2, 2, _COLUMNS), _random(3, _COLUMNS), _random(3, _COLUMNS, seed=1) > 0
    prior, ridge = _random(3, _COLUMNS, seed=2) * mask, 0.5
    W = solve(diagonal.diag(), right, prior, prior, mask, ridge, 1)
    torch.testing.assert_close(W, (right + ridge * prior) / (diagonal + ridge) * mask)


@pytest.mark.parametrize(("tokens", "noise"), [(14, 1.0), (30, 0.3), (50, 1.5)])
def test_the_ridge_is_the_one_whose_fit_heldout_inputs_like_best(tokens: int, noise: float) -> None:
    """With few noisy tokens, a small ridge fits these best and all others worst."""
    X, Z = _inputs(tokens, seed=21, noise=noise)
    other = _inputs(400, seed=31, noise=noise)
    dense, masks, pruned = _group()

    def heldout(weights: list[Tensor]) -> float:
        outputs, target = other[0] @ torch.cat(weights).T, other[1] @ torch.cat(dense).T
        return float((outputs - target).square().sum())

    by_ridge = {
        ridge: heldout(LeastSquares(ridge, 50).refit(pruned, masks, dense, _paired(X, Z), _paired(*other)).weights)
        for ridge in RIDGES
    }
    fit = LeastSquares(iterations=50).refit(pruned, masks, dense, _paired(X, Z), _paired(*other))
    assert fit.ridge == min(by_ridge, key=lambda ridge: by_ridge[ridge])
    assert by_ridge[fit.ridge] < by_ridge[min(RIDGES)]
    for weight, D, mask, prior in zip(fit.weights, dense, masks, pruned, strict=True):
        torch.testing.assert_close(weight.double(), _twin(X, Z, D, mask, prior, fit.ridge), rtol=1e-4, atol=1e-5)


def test_where_no_fit_is_better_the_pruners_weights_stay() -> None:
    X, Z = _inputs(40, seed=41)
    dense, masks, pruned = _group()
    content = _paired(X, Z)  # held-out inputs for which the pruner's weights give the dense outputs
    content.cross = (torch.linalg.pinv(torch.cat(dense)) @ torch.cat(pruned) @ content.gram.matrix).T
    fit = LeastSquares().refit(pruned, masks, dense, _paired(X, Z), content)
    assert fit.ridge is None
    assert all(torch.equal(one, other) for one, other in zip(fit.weights, pruned, strict=True))


@pytest.mark.parametrize("ridge", [None, 0.1])
def test_inputs_that_never_come_change_nothing(ridge: float | None) -> None:
    dense, masks, pruned = _group()
    nothing = _paired(torch.zeros(5, _COLUMNS), torch.zeros(5, _COLUMNS))
    fit = LeastSquares(ridge).refit(pruned, masks, dense, nothing, nothing)
    assert fit.ridge is None
    assert all(torch.equal(one, other) for one, other in zip(fit.weights, pruned, strict=True))


@pytest.mark.parametrize("ridge", [0.1, 0.0])
def test_a_column_that_is_never_fed_keeps_the_pruners_weights(ridge: float) -> None:
    X, Z = _inputs(40, seed=51)
    X[:, 3] = 0.0
    dense, masks, pruned = _group()
    fit = LeastSquares(ridge, 40).refit(pruned, masks, dense, _paired(X, Z), _paired(X, Z))
    for weight, before in zip(fit.weights, pruned, strict=True):
        torch.testing.assert_close(weight[:, 3], before[:, 3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1])
def test_infinite_inputs_of_either_model_are_refused(place: int) -> None:
    X, Z = _inputs(20, seed=61)
    (X, Z)[place][3, 4] = torch.inf
    dense, masks, pruned = _group()
    with pytest.raises(NumericalError, match="NaN or infinite"):
        LeastSquares().refit(pruned, masks, dense, _paired(X, Z), _paired(*_inputs(20, seed=62)))


def test_pairs_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="in the other"):
        Paired(4, _CPU).update(torch.zeros(3, 4), torch.zeros(2, 4))
