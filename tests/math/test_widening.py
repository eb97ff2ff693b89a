"""Widening fits a window's last part, then all of it, and keeps the state with the lowest held-out error of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import pytest
import torch
from torch import Tensor, nn

from reprune.errors import NumericalError
from reprune.math.adam import Adam, kept_rms
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Epoch, Errors, Fit, Problem
from reprune.math.widening import Widening

_SAMPLES, _HELDOUT, _TOKENS, _HIDDEN = 6, 3, 4, 5


@final
class _Chain(Problem):
    """Layers x -> x + tanh(x W), half of W zero, to be fitted to the outputs of the dense ones."""

    def __init__(self, layers: int, *, hopeless: bool = False) -> None:
        random = torch.Generator().manual_seed(1)
        dense = [0.7 * torch.randn(_HIDDEN, _HIDDEN, generator=random) for _ in range(layers)]
        self.inputs = torch.randn(_SAMPLES + _HELDOUT, _TOKENS, _HIDDEN, generator=random)
        self.goals = self._through(self.inputs, dense)
        self.masks: Sequence[Tensor | None] = [torch.rand(_HIDDEN, _HIDDEN, generator=random) > 0.5 for _ in dense]
        self.parameters = [
            nn.Parameter(torch.where(mask, W, 0.0))
            for mask, W in zip(self.masks, dense, strict=True)
            if mask is not None
        ]
        self.sized = [True] * layers
        self.samples = _SAMPLES
        if hopeless:  # held-out targets are the pruned layers' own outputs: any step is wrong there
            self.goals[_SAMPLES:] = self._through(self.inputs[_SAMPLES:], self.parameters).detach()
        self.parts: list[_Chain] = []
        self.freed = False

    @staticmethod
    def _through(X: Tensor, weights: Sequence[Tensor]) -> Tensor:
        for W in weights:
            X = X + torch.tanh(X @ W)
        return X

    def outputs(self, samples: Tensor) -> Tensor:
        return self._through(self.inputs[samples], self.parameters)

    def targets(self, samples: Tensor) -> Tensor:
        return self.goals[samples]

    @torch.no_grad()
    def _error(self, part: slice) -> Error:
        difference = (self._through(self.inputs[part], self.parameters) - self.goals[part]).square()
        return Error(float(difference.mean()), float(difference.sum() / self.goals[part].square().sum()))

    def errors(self) -> Errors:
        return Errors(self._error(slice(0, _SAMPLES)), self.heldout_error())

    def errors_before(self) -> Errors:
        return self.errors()

    def heldout_error(self) -> Error:
        return self._error(slice(_SAMPLES, None))

    def target_power(self) -> float:
        return float(self.goals[:_SAMPLES].square().mean())

    @contextmanager
    def last_part(self) -> Iterator[Problem | None]:
        if len(self.parameters) == 1:
            yield None
            return
        part = object.__new__(_Chain)
        part.inputs = self._through(self.inputs, self.parameters[:-1]).detach()
        part.goals, part.samples = self.goals, self.samples
        part.parameters, part.masks, part.sized = self.parameters[-1:], self.masks[-1:], self.sized[-1:]
        self.parts.append(part)
        yield part
        self.freed = True

    def state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]


def _widening(epochs: int, lr: float, **settings: int) -> Widening:
    part = Adam(epochs, lr, 2, **settings)  # type: ignore[arg-type]
    return Widening(last_part=part, whole=part, only_part=Adam(3 * epochs, lr, 2))


def test_the_last_part_goes_first_and_alone() -> None:
    problem = _Chain(2)
    start, states = problem.state(), []

    def watch(epoch: Epoch) -> None:
        states.append((epoch, problem.state()))

    fit = _widening(3, 0.02).fit(problem, 0, watch)
    assert [epoch.number for epoch in fit.epochs] == [1, 2, 3, 4, 5, 6]
    assert [epoch.last_part for epoch in fit.epochs] == [True] * 3 + [False] * 3
    assert [epoch for epoch, _ in states] == list(fit.epochs)
    assert all(torch.equal(state[0], start[0]) for epoch, state in states if epoch.last_part)
    assert all(not torch.equal(state[0], start[0]) for epoch, state in states if not epoch.last_part)
    assert not torch.equal(states[2][1][1], start[1])
    assert fit.planned_epochs == 6
    assert fit.guarded
    assert problem.freed


def test_the_second_descent_begins_where_the_first_was_best() -> None:
    """The twin: the two descents by hand, one after the other."""
    found, by_hand = _Chain(2), _Chain(2)
    adam = Adam(4, 0.05, 2)
    fit = Widening(adam, adam, adam).fit(found, 7, lambda epoch: None)
    with by_hand.last_part() as part:
        assert part is not None
        first = adam.descend(part, by_hand.heldout_error(), 7, lambda epoch: None)
    second = adam.descend(by_hand, first.heldout, 7, lambda epoch: None)
    assert all(torch.equal(a, b) for a, b in zip(found.state(), by_hand.state(), strict=True))
    assert fit.kept_epoch == (len(first.epochs) + second.kept_epoch if second.kept_epoch else first.kept_epoch)


@pytest.mark.parametrize("lr", [1e-3, 0.02, 0.1, 1.0])
def test_what_is_kept_has_the_lowest_heldout_error_of_all_states(lr: float) -> None:
    problem = _Chain(2)
    before = problem.heldout_error().relative
    fit = _widening(5, lr).fit(problem, 0, lambda epoch: None)
    seen = [before, *(epoch.heldout for epoch in fit.epochs)]
    assert seen[fit.kept_epoch] == pytest.approx(min(seen), rel=1e-6)
    assert problem.heldout_error().relative == pytest.approx(min(seen), rel=1e-6)


def test_where_learning_only_harms_nothing_is_changed() -> None:
    problem = _Chain(2, hopeless=True)
    start = problem.state()
    fit = _widening(4, 0.01, patience=1).fit(problem, 0, lambda epoch: None)
    assert fit.kept_epoch == 0
    assert len(fit.epochs) == 4, "two epochs of each were enough to see it"
    assert fit.planned_epochs == 8
    assert all(torch.equal(a, b) for a, b in zip(problem.state(), start, strict=True))


def test_where_only_the_wider_descent_harms_the_last_part_keeps_its_gain() -> None:
    problem = _Chain(2)
    start = problem.state()
    solver = Widening(last_part=Adam(6, 0.02, 2), whole=Adam(2, 50.0, 2), only_part=Adam(1))
    fit = solver.fit(problem, 0, lambda epoch: None)
    assert 1 <= fit.kept_epoch <= 6
    assert len(fit.epochs) > 6
    assert torch.equal(problem.state()[0], start[0])
    assert not torch.equal(problem.state()[1], start[1])


def test_a_state_better_than_the_start_but_not_than_that_of_the_last_part_is_not_kept() -> None:
    problem = _Chain(2)
    fit = Widening(last_part=Adam(6, 0.02, 2), whole=Adam(1, 0.57, 2), only_part=Adam(1)).fit(
        problem, 0, lambda epoch: None
    )
    assert fit.before is not None
    *_, best, last = (epoch.heldout for epoch in fit.epochs)
    assert best < last < fit.before.heldout.relative, "or this shows nothing"
    assert fit.kept_epoch == 6
    assert problem.heldout_error().relative == pytest.approx(best, rel=1e-6)


def test_epochs_are_numbered_on_from_those_that_were_run_of_the_last_part() -> None:
    """Not from those that were planned, nor from the one that was kept."""
    problem, watched = _Chain(2), list[Epoch]()
    solver = Widening(last_part=Adam(6, 0.2, 2), whole=Adam(2, 0.005, 2), only_part=Adam(1))
    fit = solver.fit(problem, 0, watched.append)
    run = sum(epoch.last_part for epoch in fit.epochs)
    errors = [epoch.heldout for epoch in fit.epochs]
    assert min(errors[:run]) < errors[run - 1] and run < 6, "or this shows nothing"
    assert [epoch.number for epoch in fit.epochs] == [epoch.number for epoch in watched] == list(range(1, run + 3))
    assert errors[-1] == min(errors)
    assert fit.kept_epoch == run + 2


def test_a_failure_is_numbered_as_the_epochs_are_and_what_was_gained_before_it_stays() -> None:
    problem = _Chain(2)
    fit = Widening(last_part=Adam(2, 0.02, 2), whole=Adam(3, 1e39, 2), only_part=Adam(1)).fit(
        problem, 0, lambda epoch: None
    )
    assert fit.kept_epoch == 2
    (failure,) = fit.failures
    assert failure.epoch == len(fit.epochs) + 1 >= 3
    assert problem.heldout_error().relative == pytest.approx(fit.epochs[1].heldout, rel=1e-6)
    both = Widening(last_part=Adam(2, 1e39, 2), whole=Adam(3, 1e39, 2), only_part=Adam(1))
    assert len(both.fit(_Chain(2), 0, lambda epoch: None).failures) == 2


def test_without_the_guard_the_last_state_stays_and_is_said_to() -> None:
    last_part, whole = Adam(2, 0.02, 2, guard=False), Adam(2, 0.02, 3, guard=False)
    solver, problem = Widening(last_part, whole, only_part=Adam(1, batch_size=6)), _Chain(2)
    with problem.last_part() as part:
        assert part is not None
        size = kept_rms(part)
    fit = solver.fit(problem, 0, lambda epoch: None)
    assert (fit.guarded, fit.kept_epoch) == (False, 4)
    assert fit.relative_lr == pytest.approx(0.02 / size), "of the weights that the first steps moved"
    assert solver.batch_sizes(_SAMPLES) == {2, 3, 6}
    assert (solver.planned(1), solver.planned(2)) == (1, fit.planned_epochs) == (1, 4)


def test_a_window_that_is_not_finite_before_it_is_fitted_is_refused() -> None:
    problem = _Chain(2)
    problem.inputs[0] = torch.nan
    with pytest.raises(NumericalError, match="before its reconstruction"):
        _widening(1, 0.02).fit(problem, 0, lambda epoch: None)


def test_where_there_is_no_error_no_step_is_taken() -> None:
    problem = _Chain(2)
    problem.goals = problem.outputs(torch.arange(len(problem.inputs))).detach()
    start = [parameter.detach().clone() for parameter in problem.parameters]
    assert _widening(1, 0.02).fit(problem, 0, lambda epoch: None) == Fit(problem.errors())
    assert all(torch.equal(one, other) for one, other in zip(problem.parameters, start, strict=True))


def test_a_window_of_one_part_is_adams_alone() -> None:
    one, other = _Chain(1), _Chain(1)
    found = _widening(2, 0.02).fit(one, 3, lambda epoch: None)
    expected = Adam(6, 0.02, 2).fit(other, 3, lambda epoch: None)
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(one.state(), other.state(), strict=True))


def test_masked_weights_stay_exactly_zero() -> None:
    problem = _Chain(3)
    _widening(3, 0.05).fit(problem, 0, lambda epoch: None)
    for parameter, mask in zip(problem.parameters, problem.masks, strict=True):
        assert mask is not None
        assert (parameter.detach()[~mask] == 0).all()
