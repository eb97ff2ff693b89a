"""Statistics accumulated batch by batch are those of all inputs at once, in float32 whatever the inputs' dtype."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from reprune.math.ranks import Alone
from reprune.math.statistics import Gram, Paired, SquaredNorms, Statistics

_CPU = torch.device("cpu")


def _inputs(samples: int = 5, tokens: int = 7, columns: int = 6) -> Tensor:
    return torch.randn(samples, tokens, columns, generator=torch.Generator().manual_seed(0))


def _fed(statistics: Statistics, X: Tensor, batch: int) -> None:
    for part in X.split(batch):
        statistics.update(part)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_gram_matrix_of_batches_is_that_of_the_whole(batch: int) -> None:
    X, gram = _inputs(), Gram(6, _CPU)
    _fed(gram, X, batch)
    whole = X.double().reshape(-1, 6)
    expected = torch.tensor([[float((whole[:, i] * whole[:, j]).sum()) for j in range(6)] for i in range(6)])
    torch.testing.assert_close(gram.matrix, expected)
    assert gram.tokens == 35


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 1000])
def test_a_gram_matrix_summed_in_strips_is_whole_and_symmetric(columns: int) -> None:
    X, gram = _inputs(4, 9, columns), Gram(columns, _CPU)
    for part in X.split(2):
        gram.update(part)
        seen = X[: gram.tokens // 9].double().reshape(-1, columns)
        torch.testing.assert_close(gram.matrix.double(), seen.T @ seen, rtol=1e-5, atol=1e-5)
        assert torch.equal(gram.matrix, gram.matrix.T)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_norms_of_batches_are_those_of_the_whole(batch: int) -> None:
    X, norms = _inputs(), SquaredNorms(6, _CPU)
    _fed(norms, X, batch)
    expected = torch.tensor([float(X[..., j].double().norm() ** 2) for j in range(6)])
    torch.testing.assert_close(norms.sums, expected)
    assert norms.tokens == 35


@pytest.mark.parametrize("kind", [Statistics, SquaredNorms, Gram])
def test_the_bytes_that_are_told_beforehand_are_those_that_sums_take(kind: type[Statistics]) -> None:
    assert kind.size(300) == sum(sums.nbytes for sums in kind(300, _CPU)._sums_of())


class _Two(Alone):
    """This process and another, with these tokens and sums."""

    def __init__(self, tokens: int, *sums: Tensor) -> None:
        super().__init__()
        self._tokens, self._sums = tokens, [*sums]

    def add(self, values: Sequence[float]) -> list[float]:
        return [value + self._tokens for value in values]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor += self._sums.pop(0)


@pytest.mark.parametrize("seen", [0, 2])
@pytest.mark.parametrize("columns", [6, 300])
def test_statistics_of_two_processes_are_those_of_all_inputs_though_one_has_seen_none(seen: int, columns: int) -> None:
    X, Z = _inputs(columns=columns), _inputs(columns=columns) + 1.0
    paired, norms = Paired(columns, _CPU), SquaredNorms(columns, _CPU)
    if seen:
        paired.update(X[:seen], Z[:seen])
        norms.update(X[:seen])
    left, others = (one[seen:].reshape(-1, columns) for one in (X, Z))
    other = Gram(columns, _CPU)
    other.update(left)
    paired.sum_over_(_Two(len(left), *other._sums_of(), left.T @ others))
    norms.sum_over_(_Two(len(left), left.square().sum(dim=0)))
    X, Z = (one.reshape(-1, columns) for one in (X, Z))
    torch.testing.assert_close(paired.gram.matrix, X.T @ X)
    torch.testing.assert_close(paired.cross, X.T @ Z)
    torch.testing.assert_close(norms.sums, X.square().sum(dim=0))
    assert paired.gram.tokens == norms.tokens == len(X)


def test_the_norms_are_the_diagonal_of_the_gram_matrix() -> None:
    X, gram, norms = _inputs(), Gram(6, _CPU), SquaredNorms(6, _CPU)
    gram.update(X)
    norms.update(X)
    torch.testing.assert_close(gram.matrix.diagonal(), norms.sums)


def test_plain_statistics_count_tokens_whatever_their_shape() -> None:
    statistics = Statistics(6, _CPU)
    statistics.update(_inputs())
    statistics.update(_inputs()[0])
    statistics.update(_inputs()[0, 0])
    assert statistics.tokens == 35 + 7 + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    # 4096 tokens of about 1: a running sum in bfloat16 would stop at 256, one in float16 be off by units.
    X = (1 + 0.1 * torch.randn(8, 512, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    gram, norms = Gram(4, _CPU), SquaredNorms(4, _CPU)
    _fed(gram, X, 1)
    _fed(norms, X, 1)
    paired = Paired(4, _CPU)
    paired.update(X, X)
    whole = X.double().reshape(-1, 4)
    assert gram.matrix.dtype == norms.sums.dtype == paired.cross.dtype == torch.float32
    torch.testing.assert_close(paired.cross.double(), whole.T @ whole, rtol=5e-5, atol=0)
    torch.testing.assert_close(gram.matrix.double(), whole.T @ whole, rtol=5e-5, atol=0)
    torch.testing.assert_close(norms.sums.double(), whole.square().sum(dim=0), rtol=5e-5, atol=0)


class _ByProduct(Statistics):
    """X'X as a package may add it up: by a product that autocast would round."""

    def __init__(self, columns: int, device: torch.device) -> None:
        super().__init__(columns, device)
        self.sums = torch.zeros(columns, columns, device=device)

    def _accumulate(self, X: Tensor) -> None:
        self.sums += X.T @ X


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_products_are_not_rounded_where_those_of_the_block_are(dtype: torch.dtype) -> None:
    X, plain, within = 100 * _inputs(), _ByProduct(6, _CPU), _ByProduct(6, _CPU)
    plain.update(X)
    with torch.autocast("cpu", dtype=dtype):
        within.update(X)
    assert torch.equal(within.sums, plain.sums)


def test_inputs_that_carry_gradients_leave_no_graph_behind() -> None:
    gram, norms = Gram(6, _CPU), SquaredNorms(6, _CPU)
    X = _inputs().requires_grad_()
    gram.update(X)
    norms.update(X)
    assert not gram.matrix.requires_grad
    assert not norms.sums.requires_grad


def test_inputs_are_left_as_they_are() -> None:
    X = _inputs()
    before = X.clone()
    for statistics in (Statistics(6, _CPU), SquaredNorms(6, _CPU), Gram(6, _CPU)):
        statistics.update(X)
    assert torch.equal(X, before)


def test_inputs_of_another_width_are_not_taken_in() -> None:
    with pytest.raises(ValueError, match="6 columns"):
        Gram(5, _CPU).update(_inputs(3, 7, 6))


def test_a_gram_matrix_knows_the_squared_norms_of_its_inputs() -> None:
    gram, norms = Gram(300, torch.device("cpu")), SquaredNorms(300, torch.device("cpu"))
    for seed in (0, 1):
        X = torch.randn(40, 300, generator=torch.Generator().manual_seed(seed))
        gram.update(X)
        norms.update(X)
    found = gram.squared_norms()
    torch.testing.assert_close(found.sums, norms.sums)
    assert found.tokens == norms.tokens == 80
    gram.update(X)
    torch.testing.assert_close(found.sums, norms.sums)  # unchanged by what comes later
