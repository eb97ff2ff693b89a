"""Results of another package's pruner are passed on if they are what it promises, and otherwise refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import final

import pytest
import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.checked import Checked
from reprune.math.patterns import NM, Pattern, Unstructured
from reprune.math.pruner import Pruned, Pruner
from reprune.math.statistics import Gram, SquaredNorms, Statistics
from reprune.math.wanda import Wanda


class Spoilt(Pruner[SquaredNorms]):
    """Wanda, whose results `spoil` changes."""

    def __init__(self, spoil: Callable[[list[Pruned]], list[Pruned]]) -> None:
        self.spoil = spoil

    def statistics(self, columns: int, device: torch.device) -> SquaredNorms:
        return Wanda().statistics(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: SquaredNorms, pattern: Pattern) -> list[Pruned]:
        return self.spoil(Wanda().prune(weights, statistics, pattern))


def _prune(pruner: Pruner[SquaredNorms], pattern: Pattern) -> list[Pruned]:
    torch.manual_seed(0)
    weights = [torch.randn(6, 8), torch.randn(4, 8)]
    checked = Checked("mine", pruner)
    statistics = checked.statistics(8, torch.device("cpu"))
    statistics.update(torch.randn(32, 8))
    return checked.prune(weights, statistics, pattern)


@final
class ByNaN(Pruner[SquaredNorms]):
    """Wanda with scores that are divided by a sum of zero."""

    def statistics(self, columns: int, device: torch.device) -> SquaredNorms:
        return Wanda().statistics(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: SquaredNorms, pattern: Pattern) -> list[Pruned]:
        masks = [pattern.keep(0.0 * weight / 0.0, "row") for weight in weights]
        return [Pruned(weight * mask, mask) for weight, mask in zip(weights, masks, strict=True)]


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)])
def test_scores_that_are_nan_make_no_mask(pattern: Pattern) -> None:
    with pytest.raises(NumericalError, match=r"^pruner mine.*scores.* are NaN"):
        _prune(ByNaN(), pattern)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)])
def test_what_is_as_promised_is_passed_on(pattern: Pattern) -> None:
    found = _prune(Spoilt(lambda results: [replace(one, notes=("said",)) for one in results]), pattern)
    for one, expected in zip(found, _prune(Wanda(), pattern), strict=True):
        assert torch.equal(one.weight, expected.weight)
        assert torch.equal(one.mask, expected.mask)
        assert one.notes == ("said",)


def _second(**changes: Callable[[Pruned], Tensor]) -> Callable[[list[Pruned]], list[Pruned]]:
    """Change something of the second matrix."""
    return lambda found: [found[0], replace(found[1], **{key: make(found[1]) for key, make in changes.items()})]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda found: found[:1], "returned 1 matrices; 2 were expected", id="too few"),
        pytest.param(lambda found: [*found, found[1]], "returned 3 matrices; 2 were expected", id="too many"),
        pytest.param(_second(weight=lambda one: one.weight.half()), "a weight of torch.float32 (4, 8)", id="half"),
        pytest.param(
            _second(mask=lambda one: one.mask.float()), "a mask of torch.bool (4, 8) on cpu, got", id="floats"
        ),
        pytest.param(_second(mask=lambda one: one.mask[:1]), "got torch.bool (1, 8) on cpu", id="row"),
        pytest.param(
            _second(mask=lambda one: one.mask.to("meta")), "on cpu, got torch.bool (4, 8) on meta", id="elsewhere"
        ),
        pytest.param(_second(weight=lambda one: one.weight / 0.0), "NaN or infinite", id="infinite"),
        pytest.param(_second(weight=lambda one: one.weight + 1.0), "not zero where its mask is False", id="unmasked"),
        pytest.param(
            _second(mask=lambda one: torch.ones_like(one.mask)), "keeps more weights than 2:4 allows", id="pattern"
        ),
    ],
)
def test_what_is_not_is_refused_by_name(spoil: Callable[[list[Pruned]], list[Pruned]], said: str) -> None:
    with pytest.raises(NumericalError, match="pruner mine") as caught:
        _prune(Spoilt(spoil), NM(2, 4))
    assert said in str(caught.value)
    assert "returned" in said or "matrix 2 of this group" in str(caught.value)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "returned 1 matrices; 2 were expected"),
        ([(torch.zeros(6, 8), torch.zeros(6, 8).bool())] * 2, "matrix 1 .*: expected a .*Pruned, got a tuple"),
    ],
)
def test_what_is_no_list_of_results_is_refused(made: object, said: str) -> None:
    with pytest.raises(NumericalError, match=f"pruner mine.* {said}"):
        _prune(Spoilt(lambda found: made), NM(2, 4))  # type: ignore[arg-type, return-value]  # to be seen


def test_results_may_come_one_by_one_and_a_note_alone() -> None:
    found = _prune(Spoilt(lambda found: (replace(one, notes="said") for one in found)), NM(2, 4))  # type: ignore[arg-type, return-value]
    assert [one.notes for one in found] == [("said",), ("said",)]


class Damping(Pruner[Gram]):
    """Adds to the diagonal of its statistics, in a copy or in place."""

    def __init__(self, copied: bool) -> None:
        self.copied = copied

    def statistics(self, columns: int, device: torch.device) -> Gram:
        return Gram(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: Gram, pattern: Pattern) -> list[Pruned]:
        matrix = statistics.matrix.clone() if self.copied else statistics.matrix
        matrix.diagonal().add_(1.0)
        masks = [pattern.keep(weight.abs() * matrix.diagonal(), "row") for weight in weights]
        return [Pruned(weight * mask, mask) for weight, mask in zip(weights, masks, strict=True)]


def test_statistics_that_others_read_are_not_to_be_changed() -> None:
    def prune(copied: bool) -> list[Pruned]:
        checked = Checked("mine", Damping(copied))
        statistics = checked.statistics(8, torch.device("cpu"))
        statistics.update(torch.ones(4, 8))
        return checked.prune([torch.randn(4, 8)], statistics, NM(2, 4))

    assert len(prune(copied=True)) == 1
    with pytest.raises(NumericalError, match="pruner mine changed its statistics, which are shared"):
        prune(copied=False)


class Careless(Pruner[Statistics]):
    """Prunes the first half of each row in place, and needs no data."""

    data_free = True

    def statistics(self, columns: int, device: torch.device) -> Statistics:
        return Statistics(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern) -> list[Pruned]:
        for weight in weights:
            weight[:, : weight.shape[1] // 2] = 0.0
        return [Pruned(weight.T.contiguous().T, (weight != 0.0).T.contiguous().T) for weight in weights]


def test_the_weights_given_stay_as_they_are_and_what_comes_is_contiguous() -> None:
    weight = torch.randn(4, 8)
    before = weight.clone()
    checked = Checked("mine", Careless())
    [found] = checked.prune([weight], checked.statistics(8, torch.device("cpu")), Unstructured(0.5))
    assert checked.data_free
    assert torch.equal(weight, before)
    assert found.weight.is_contiguous()
    assert found.mask.is_contiguous()
    assert not found.mask[:, :4].any()


class Inferred(Statistics):
    """Sums that are made in inference mode."""

    @torch.inference_mode()
    def _accumulate(self, X: Tensor) -> None:
        self.sums = X.square().sum(0)

    def _sums_of(self) -> list[Tensor]:
        return [self.sums]


def test_statistics_may_be_gathered_in_inference_mode() -> None:
    class Own(Careless):
        def statistics(self, columns: int, device: torch.device) -> Statistics:
            return Inferred(columns, device)

    checked = Checked("mine", Own())
    statistics = checked.statistics(8, torch.device("cpu"))
    statistics.update(torch.ones(4, 8))
    assert len(checked.prune([torch.randn(4, 8)], statistics, Unstructured(0.5))) == 1


def test_its_statistics_are_its_own() -> None:
    class Squares(Spoilt):
        def statistics(self, columns: int, device: torch.device) -> Gram:  # type: ignore[override]  # to be seen
            return Gram(columns, device)

    assert isinstance(Checked("mine", Squares(lambda found: found)).statistics(4, torch.device("cpu")), Gram)
    assert not Checked("mine", Spoilt(lambda found: found)).data_free


class Random(Careless):
    def _prune(self, weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern) -> list[Pruned]:
        masks = [pattern.keep(torch.rand_like(weight), "row") for weight in weights]
        return [Pruned(weight * mask, mask) for weight, mask in zip(weights, masks, strict=True)]


class OneByOne(Random):
    def _prune(self, weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern) -> Iterator[Pruned]:  # type: ignore[override]  # to be seen
        for weight in weights:
            yield from super()._prune([weight], statistics, pattern)


@pytest.mark.parametrize("kind", [Random, OneByOne])
def test_random_numbers_are_decided_by_the_runs_seed_and_the_matrices_whatever_was_drawn_before(
    kind: type[Random],
) -> None:
    def mask(seed: int, weight: Tensor, drawn: int = 0) -> Tensor:
        torch.manual_seed(seed)
        torch.rand(drawn)
        checked = Checked("mine", kind())
        [found] = checked.prune([weight], checked.statistics(64, torch.device("cpu")), Unstructured(0.5))
        assert torch.rand(1).equal(torch.rand(drawn + 1, generator=torch.Generator().manual_seed(seed))[-1:])
        return found.mask

    one, other = torch.arange(256.0).view(4, 64), torch.arange(1.0, 257.0).view(4, 64)
    assert torch.equal(mask(0, one), mask(0, one, drawn=7))
    assert not torch.equal(mask(0, one), mask(1, one))
    assert not torch.equal(mask(0, one), mask(0, other))
