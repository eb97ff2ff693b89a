"""With the guard a window ends no worse than it began, and without it a fit that diverges is an error."""

from __future__ import annotations

import math
import re

import pytest
import torch

from reprune.errors import NumericalError
from reprune.math.adam import Adam, kept_rms
from reprune.math.reconstruction_error import Error
from tests.math.test_adam import _Network, _nothing, _same


@pytest.mark.parametrize("lr", [1e-3, 0.05, 0.5, 5.0])
def test_with_the_guard_no_window_ends_worse_than_it_began(lr: float) -> None:
    problem = _Network()
    start, before = problem.state(), problem.heldout_error().normalized
    fit = Adam(epochs=6, lr=lr, batch_size=2).fit(problem, 0, _nothing)
    ends = [problem.heldout_error().normalized, before]
    assert ends[0] == min(ends)
    assert problem.heldout_error().relative == pytest.approx(
        min(epoch.heldout for epoch in fit.epochs) if fit.kept_epoch else problem.heldout_error().relative
    )
    assert (fit.kept_epoch == 0) == _same(problem.state(), start)


def test_the_state_kept_is_that_of_the_best_epoch() -> None:
    best = _Network()
    fit = Adam(epochs=12, lr=0.1, batch_size=2, patience=12).fit(best, 0, _nothing)
    heldout = [epoch.heldout for epoch in fit.epochs]
    assert fit.kept_epoch == 1 + heldout.index(min(heldout))
    assert 0 < fit.kept_epoch < 12  # or this test would show nothing
    assert best.heldout_error().relative == min(heldout)
    last = _Network()
    assert Adam(epochs=12, lr=0.1, batch_size=2, guard=False).fit(last, 0, _nothing).kept_epoch == 12
    assert last.heldout_error().relative == heldout[-1] > min(heldout)


def test_where_learning_only_harms_the_start_is_kept() -> None:
    problem = _Network(contrary=True)
    start = problem.state()
    fit = Adam(epochs=9, lr=0.01, batch_size=2, patience=3).fit(problem, 0, _nothing)
    assert fit.kept_epoch == 0
    assert len(fit.epochs) == 4, "it stops early, once three epochs in a row were above the first"
    assert fit.planned_epochs == 9
    assert _same(problem.state(), start)


def test_without_the_guard_the_last_state_stays_even_if_it_is_worse() -> None:
    problem = _Network(contrary=True)
    fit = Adam(epochs=5, lr=0.01, batch_size=2, guard=False, patience=1).fit(problem, 0, _nothing)
    assert fit.kept_epoch == len(fit.epochs) == 5
    assert problem.heldout_error().relative == fit.epochs[-1].heldout > 0
    descent = Adam(epochs=1, lr=0.01, guard=False).descend(problem, problem.heldout_error(), 0, _nothing)
    assert descent.heldout == problem.heldout_error(), "of the state that it left"


@pytest.mark.parametrize("batch_size", [2, 7])
def test_a_fit_that_diverges_keeps_its_start_under_the_guard(batch_size: int) -> None:
    problem = _Network()
    start = problem.state()
    fit = Adam(epochs=4, lr=1e30, batch_size=batch_size).fit(problem, 0, _nothing)
    assert fit.kept_epoch == 0
    assert len(fit.epochs) < 4
    assert _same(problem.state(), start)
    (failure,) = fit.failures
    assert (failure.epoch, failure.lr) == (len(fit.epochs) + 1, 1e30)
    assert re.fullmatch(
        r"the (loss|held-out error) became (nan|inf) in epoch \d; lower --lr \(the learning rate, now 1e\+30\)",
        str(failure),
    )


def test_a_fit_that_stays_finite_has_no_failure() -> None:
    assert Adam(epochs=2, lr=0.01, batch_size=2).fit(_Network(), 0, _nothing).failures == ()


@pytest.mark.parametrize("batch_size", [2, 7])
def test_a_fit_that_diverges_is_an_error_without_the_guard(batch_size: int) -> None:
    with pytest.raises(NumericalError, match=r"epoch \d+; lower --lr \(the learning rate, now 1e\+30\)"):
        Adam(epochs=4, lr=1e30, batch_size=batch_size, guard=False).fit(_Network(), 0, _nothing)
    problem = _Network()
    with pytest.raises(NumericalError, match=re.escape(f"now {1e30 * kept_rms(problem):g})")):
        Adam(epochs=4, lr=1e30, batch_size=batch_size, guard=False, relative=True).fit(problem, 0, _nothing)


def test_a_heldout_error_that_is_not_finite_ends_a_descent_though_its_loss_is() -> None:
    class Blind(_Network):
        def heldout_error(self) -> Error:
            return Error(math.inf, math.inf) if self.batches else super().heldout_error()

    problem = Blind()
    start = problem.state()
    with pytest.raises(NumericalError, match="the held-out error became inf in epoch 1"):
        Adam(epochs=4, lr=0.01, guard=False).fit(Blind(), 0, _nothing)
    fit = Adam(epochs=4, lr=0.01, patience=9).fit(problem, 0, _nothing)
    assert (fit.kept_epoch, fit.epochs) == (0, ())
    assert [(failure.what, failure.epoch) for failure in fit.failures] == [("the held-out error became inf", 1)]
    assert _same(problem.state(), start)


@pytest.mark.parametrize("sample", [0, -1], ids=["calibrated on", "held out"])
def test_a_window_that_is_not_finite_before_it_is_fitted_is_refused(sample: int) -> None:
    problem = _Network()
    problem.inputs[sample] = math.nan
    with pytest.raises(NumericalError, match="before its reconstruction"):
        Adam(epochs=1).fit(problem, 0, _nothing)


@pytest.mark.parametrize(("goal", "said"), [(math.nan, "nan"), (math.inf, "inf")])
def test_of_a_loss_and_a_heldout_error_that_went_bad_the_loss_is_told(goal: float, said: str) -> None:
    problem = _Network()
    problem.scale = torch.ones_like(problem.goals[0, 0])
    start = problem.heldout_error()
    problem.goals[0] = goal
    told = (
        f"the loss became {said} in epoch 1; lower --lr (the learning rate, now 0.01) and begin again in another folder"
    )
    with pytest.raises(NumericalError, match=f"^{re.escape(told)}$"):
        Adam(epochs=1, lr=0.01, batch_size=7, guard=False).descend(problem, start, 0, _nothing)
