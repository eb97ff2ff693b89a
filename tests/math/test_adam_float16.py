"""With products in float16, no step of Adam's vanishes, and an overflow costs only its own step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from reprune.math.adam import Adam
from reprune.math.ranks import Alone
from tests.math.test_adam import _Network, _nothing, _same


def test_float16_gradients_are_kept_from_vanishing() -> None:
    """Gradients through float16 below 6e-8 are zero, unless the loss is scaled up beforehand."""

    class Faint(_Network):
        def __init__(self, half: bool) -> None:
            super().__init__()
            self.half = half

        def outputs(self, samples: Tensor) -> Tensor:
            return super().outputs(samples).half().float()  # gradients pass through float16

        def target_power(self) -> float:
            return 1e9  # makes them all tiny

    plain, scaled = Faint(False), Faint(True)
    start = plain.state()
    for problem in (plain, scaled):
        Adam(epochs=2, lr=0.01, batch_size=2, guard=False).fit(problem, 0, _nothing)
    assert _same(plain.state(), start), "or this shows nothing"
    assert not _same(scaled.state(), start)
    assert scaled.errors().calibration.relative < Faint(True).errors().calibration.relative


def test_an_overflow_of_float16_costs_a_step_and_no_more() -> None:
    class Bursting(_Network):
        half = True

        def outputs(self, samples: Tensor) -> Tensor:
            outputs = super().outputs(samples)
            if len(self.batches) == 1:
                outputs.register_hook(lambda gradient: gradient * math.inf)
            return outputs

    problem, unhurt = Bursting(), _Network()
    fits = [Adam(epochs=3, lr=0.01, batch_size=1).fit(one, 0, _nothing) for one in (problem, unhurt)]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in problem.state())
    assert fits[0].kept_epoch == fits[1].kept_epoch == 3
    assert problem.errors().calibration.relative == pytest.approx(unhurt.errors().calibration.relative, rel=0.2)


def test_a_process_without_a_sample_in_the_first_step_takes_it_with_the_others() -> None:
    class Late(Alone):
        """A process that has no sample of the first batch, and so no gradient but what the others send."""

        steps = 0

        def own(self, batch: Tensor) -> Tensor:
            self.steps += 1
            return batch[: 0 if self.steps == 1 else len(batch)]

        def sum_gradients_(self, parameters: Sequence[nn.Parameter]) -> None:
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad

    problem = _Network()
    problem.half, problem.ranks = True, Late()
    start = problem.state()
    fit = Adam(epochs=1, lr=1e-3, batch_size=7, guard=False).fit(problem, 0, _nothing)
    assert math.isfinite(fit.epochs[0].calibration)
    assert not _same(problem.state(), start)


def test_a_first_step_that_overflowed_was_not_tried_and_the_next_is() -> None:
    class Bursting(_Network):
        half = True
        bursts = 0

        def outputs(self, samples: Tensor) -> Tensor:
            outputs = super().outputs(samples)
            if len(self.batches) <= self.bursts:
                outputs.register_hook(lambda gradient: gradient * math.inf)
            return outputs

    adam = Adam(epochs=6, lr=1.0, batch_size=1, try_first_step=True)
    rates = []
    for bursts in (0, 1, 2):
        problem = Bursting()
        problem.bursts = bursts
        fit = adam.fit(problem, 0, _nothing)
        rates.append(fit.epochs[0].lr)
        assert fit.kept_epoch > 0
    assert max(rates) < 0.5, "or the whole step was taken well"
