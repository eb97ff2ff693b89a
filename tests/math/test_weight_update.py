"""A weight update keeps the pruner's mask, and its weights are those of regularized least squares for each row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.magnitude import Magnitude
from reprune.math.patterns import NM, Pattern, Unstructured
from reprune.math.pruner import Pruned, Pruner
from reprune.math.sparsegpt import SparseGPT
from reprune.math.statistics import Gram
from reprune.math.wanda import Wanda
from reprune.math.weight_update import WeightUpdate

_CPU = torch.device("cpu")
_COLUMNS = 16
_PRUNERS = (Magnitude(), Wanda(), SparseGPT(block_size=8))

pruners = pytest.mark.parametrize("masks", _PRUNERS, ids=lambda one: type(one).__name__)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _inputs(tokens: int = 100, seed: int = 0) -> Tensor:
    """Inputs (tokens, columns) that are correlated and of different sizes."""
    mixing = torch.eye(_COLUMNS) + 0.4 * _random(_COLUMNS, _COLUMNS, seed=99)
    return _random(tokens, _COLUMNS, seed=seed) @ mixing * torch.logspace(-1, 1, _COLUMNS)


def _pruned(pruner: Pruner[Gram], weights: list[Tensor], X: Tensor, pattern: Pattern) -> list[Pruned]:
    statistics = pruner.statistics(X.shape[1], _CPU)
    for start in range(0, len(X), 33):
        statistics.update(X[start : start + 33])
    return pruner.prune(weights, statistics, pattern)


def _twin(X: Tensor, D: Tensor, mask: Tensor, ridge: float) -> Tensor:
    """Solve each row by itself: its kept columns against the dense outputs, with a further row of each for the pull."""
    X, D = X.double(), D.double()
    pulls = (ridge**0.5 * X.norm(dim=0)).diag()
    found = torch.zeros_like(D)
    for row in range(len(D)):
        kept = mask[row]
        A = torch.cat([X[:, kept], pulls[kept][:, kept]])
        b = torch.cat([X @ D[row], pulls[kept][:, kept] @ D[row, kept]])
        found[row, kept] = torch.linalg.lstsq(A, b).solution
    return found


def _objective(X: Tensor, D: Tensor, W: Tensor, mask: Tensor, ridge: float) -> float:
    outputs = (X.double() @ (W - D).double().T).square().sum()
    moved = ((W - D * mask).double() * X.double().norm(dim=0)).square().sum()
    return float(outputs + ridge * moved)


@pruners
@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.9), NM(2, 4)], ids=str)
@pytest.mark.parametrize("ridge", [0.01, 1.0, 5.0])
def test_the_kept_weights_are_those_of_least_squares_for_each_row(
    masks: Magnitude | Wanda | SparseGPT, pattern: Pattern, ridge: float
) -> None:
    weights, X = [_random(6, _COLUMNS, seed=1), _random(3, _COLUMNS, seed=2)], _inputs()
    found = _pruned(WeightUpdate(masks, ridge, iterations=60), weights, X, pattern)
    for D, one in zip(weights, found, strict=True):
        torch.testing.assert_close(one.weight.double(), _twin(X, D, one.mask, ridge), rtol=1e-4, atol=1e-4)
        assert not one.weight[~one.mask].any()


@pruners
def test_the_masks_and_notes_are_the_pruners_own(masks: Magnitude | Wanda | SparseGPT) -> None:
    weights, X = [_random(6, _COLUMNS, seed=1), _random(3, _COLUMNS, seed=2)], _inputs()
    X[:, :2] = 0.0  # of which SparseGPT has a note
    alone = masks.statistics(_COLUMNS, _CPU)
    alone.update(X)
    own = masks.prune(weights, alone, Unstructured(0.5))  # type: ignore[arg-type]  # each its own statistics
    found = _pruned(WeightUpdate(masks), weights, X, Unstructured(0.5))
    assert all(torch.equal(one.mask, other.mask) for one, other in zip(own, found, strict=True))
    assert [one.notes for one in own] == [one.notes for one in found]
    assert any(one.notes for one in found) == isinstance(masks, SparseGPT)


def test_each_iteration_lowers_what_is_minimized() -> None:
    D, X = _random(6, _COLUMNS, seed=1), _inputs()
    found = []
    for iterations in range(7):
        (one,) = _pruned(WeightUpdate(Wanda(), 0.5, iterations), [D], X, Unstructured(0.5))
        found.append(_objective(X, D, one.weight, one.mask, 0.5))
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.9 * found[0]


def test_with_few_iterations_most_of_the_way_is_gone_where_the_ridge_is_strong() -> None:
    """In units of the inputs' norms a system's eigenvalues are between the ridge and the ridge plus the columns."""
    D, X = _random(6, _COLUMNS, seed=1), _inputs()
    start, few, end = (
        _objective(X, D, one.weight, one.mask, 1.0)
        for iterations in (0, WeightUpdate(Wanda()).iterations, 60)
        for one in _pruned(WeightUpdate(Wanda(), 1.0, iterations), [D], X, Unstructured(0.5))
    )
    assert few - end < 0.1 * (start - end)


@pruners
def test_products_in_bfloat16_take_the_objective_as_low_but_for_one_part_in_a_hundred(
    masks: Magnitude | Wanda | SparseGPT,
) -> None:
    D, X = _random(40, _COLUMNS, seed=1), _inputs()
    found = []
    for products in (torch.float32, torch.bfloat16):
        (one,) = _pruned(WeightUpdate(masks, products=products), [D], X, Unstructured(0.5))
        assert one.weight.dtype == torch.float32
        found.append(_objective(X, D, one.weight, one.mask, 1.0))
    start = _objective(X, D, D * one.mask, one.mask, 1.0)
    assert found[0] < 0.95 * start
    assert abs(found[1] - found[0]) < 0.01 * (start - found[0])


def test_weights_stay_where_no_two_inputs_have_anything_in_common() -> None:
    """Then no kept weight can do anything for a pruned one."""
    D, X = _random(6, _COLUMNS, seed=1), torch.linalg.qr(_random(40, _COLUMNS)).Q * torch.logspace(-1, 1, _COLUMNS)
    (one,) = _pruned(WeightUpdate(Wanda()), [D], X, Unstructured(0.5))
    torch.testing.assert_close(one.weight, D * one.mask, rtol=1e-4, atol=1e-5)


def test_of_two_equal_inputs_the_kept_weight_takes_over_its_share_of_the_other() -> None:
    """One row (a, b) that loses b, with x_1 = x_2: (a - W + b)^2 + ridge (W - a)^2 is least at a + b / (1 + ridge)."""
    X = _random(50, 1).expand(50, 2).contiguous()
    (one,) = _pruned(WeightUpdate(Wanda(), ridge=3.0), [torch.tensor([[2.0, 1.0]])], X, Unstructured(0.5))
    torch.testing.assert_close(one.weight, torch.tensor([[2.25, 0.0]]))


@settings(max_examples=60, deadline=None)
@given(
    exponents=st.lists(st.integers(-6, 6), min_size=_COLUMNS, max_size=_COLUMNS),
    ridge=st.floats(0.05, 10.0),
    seed=st.integers(0, 1000),
)
def test_the_units_of_the_inputs_do_not_matter(exponents: list[int], ridge: float, seed: int) -> None:
    """Inputs times s and weights over s, by powers of two, make the same outputs."""
    D, X, scales = _random(5, _COLUMNS, seed=seed), _inputs(seed=seed), 2.0 ** torch.tensor(exponents)
    update = WeightUpdate(Wanda(), ridge)
    ((one,), (other,)) = (
        _pruned(update, [weight], inputs, Unstructured(0.5)) for weight, inputs in ((D, X), (D / scales, X * scales))
    )
    assert torch.equal(one.mask, other.mask)
    torch.testing.assert_close(other.weight * scales, one.weight, rtol=1e-4, atol=1e-5)


def test_a_stronger_ridge_moves_the_weights_less() -> None:
    D, X = _random(6, _COLUMNS, seed=1), _inputs()
    moved = []
    for ridge in (0.01, 0.1, 1.0, 10.0, 1e6):
        (one,) = _pruned(WeightUpdate(Wanda(), ridge, iterations=60), [D], X, Unstructured(0.5))
        moved.append(float(((one.weight - D * one.mask) * X.norm(dim=0)).norm()))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-3 * moved[0]


def test_inputs_that_are_always_zero_hinder_nothing() -> None:
    D, X = _random(6, _COLUMNS, seed=1), _inputs()
    X[:, [0, 5]] = 0.0
    (one,) = _pruned(WeightUpdate(Magnitude(), iterations=60), [D], X, Unstructured(0.5))
    alive = X.norm(dim=0) > 0
    assert torch.equal(one.weight[:, ~alive], (D * one.mask)[:, ~alive])
    expected = _twin(X[:, alive], D[:, alive], one.mask[:, alive], 1.0)
    torch.testing.assert_close(one.weight[:, alive].double(), expected, rtol=1e-4, atol=1e-4)
    (idle,) = _pruned(WeightUpdate(Wanda()), [D], torch.zeros(9, _COLUMNS), Unstructured(0.5))
    assert torch.equal(idle.weight, D * idle.mask)


@pruners
def test_inputs_that_are_not_finite_are_refused(masks: Magnitude | Wanda | SparseGPT) -> None:
    X = _inputs()
    X[3, 3] = torch.nan
    with pytest.raises(NumericalError, match="inputs of this group hold NaN or infinite values"):
        _pruned(WeightUpdate(masks), [_random(6, _COLUMNS)], X, Unstructured(0.5))
