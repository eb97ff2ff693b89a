"""Adam takes the textbook's steps, leaves masked weights at zero, and never ends worse than it began."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reprune.errors import NumericalError
from reprune.math.adam import Adam, kept_rms
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Epoch, Errors, Fit, NoSolver, Problem

_SAMPLES, _HELDOUT, _TOKENS, _HIDDEN, _INNER = 7, 3, 5, 4, 6


def _nothing(epoch: Epoch) -> None:
    del epoch


def _forward(X: Tensor, first: Tensor, bias: Tensor, second: Tensor) -> Tensor:
    """A small network: X (..., hidden) to (..., hidden)."""
    return torch.tanh(X @ first.T + bias) @ second.T


class _Network(Problem):
    """A pruned two-layer network to be fitted to the dense one's outputs; it keeps the batches that it is asked for."""

    def __init__(self, contrary: bool = False) -> None:
        random = torch.Generator().manual_seed(0)
        first = torch.randn(_INNER, _HIDDEN, generator=random)
        bias = 0.1 * torch.randn(_INNER, generator=random)
        second = torch.randn(_HIDDEN, _INNER, generator=random)
        self.inputs = torch.randn(_SAMPLES + _HELDOUT, _TOKENS, _HIDDEN, generator=random)
        self.goals = _forward(self.inputs, first, bias, second)
        mask = torch.rand(_INNER, _HIDDEN, generator=random) > 0.5
        self.parameters = [
            nn.Parameter(torch.where(mask, first, 0.0)),
            nn.Parameter(bias.clone()),
            nn.Parameter(second.clone()),
        ]
        self.masks: list[Tensor | None] = [mask, None, None]
        self.sized = [True, False, False]
        self.samples = _SAMPLES
        if contrary:  # held-out targets are the pruned network's own outputs: any step is wrong there
            self.goals[_SAMPLES:] = self._run(self.inputs[_SAMPLES:]).detach()
        self.batches: list[Tensor] = []

    def _run(self, X: Tensor) -> Tensor:
        return _forward(X, *self.parameters)

    def outputs(self, samples: Tensor) -> Tensor:
        self.batches.append(samples.clone())
        return self._run(self.inputs[samples])

    def targets(self, samples: Tensor) -> Tensor:
        return self.goals[samples]

    @torch.no_grad()
    def _error(self, part: slice) -> Error:
        difference = (self._run(self.inputs[part]) - self.goals[part]).square()
        relative = float(difference.sum() / self.goals[part].square().sum())
        scaled = None if self.scale is None else float((difference / self.scale.square()).mean())
        return Error(float(difference.mean()), relative, scaled)

    def errors(self) -> Errors:
        return Errors(self._error(slice(0, _SAMPLES)), self.heldout_error())

    def errors_before(self) -> Errors:
        return self.errors()

    def heldout_error(self) -> Error:
        return self._error(slice(_SAMPLES, None))

    def target_power(self) -> float:
        return float(self.goals[:_SAMPLES].square().mean())

    def last_part(self) -> AbstractContextManager[Problem | None]:
        return nullcontext(None)

    def state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]


class _OneMatrix(_Network):
    """Only the network's first matrix, in other units: times `factor`, on inputs divided by it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.goals = self.inputs @ torch.randn(_HIDDEN, _INNER, generator=torch.Generator().manual_seed(1))
        self.parameters, self.masks = [nn.Parameter(factor * self.state()[0])], [self.masks[0]]
        self.sized = [True]
        self.inputs = self.inputs / factor

    def _run(self, X: Tensor) -> Tensor:
        return X @ self.parameters[0].T


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _twin(problem: _Network, start: list[Tensor], batches: list[Tensor], adam: Adam, steps: int) -> list[Tensor]:
    """Adam written out, in float64, the mask multiplied into the weights of every forward pass.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= lr (1 - step / steps) m^ / (sqrt(v^) + 1e-8),
    where m^ and v^ are m and v over 1 - b1^t and 1 - b2^t. The factor of lr goes from `decay[0]` to `decay[1]`, 1 and 0
    above. In a warm-up of n steps, lr is multiplied by 1 / (n + 1) in the first, 2 / (n + 1) in the second, and so on.
    """
    first_beta, second_beta = adam.betas
    weights = [weight.double() for weight in start]
    m = [torch.zeros_like(weight) for weight in weights]
    v = [torch.zeros_like(weight) for weight in weights]
    power = problem.goals[:_SAMPLES].double().square().mean()
    scale = power.sqrt() if problem.scale is None else problem.scale.double()
    for step, batch in enumerate(batches):
        leaves = [weight.clone().requires_grad_() for weight in weights]
        masked = [w if mask is None else w * mask for w, mask in zip(leaves, problem.masks, strict=True)]
        difference = _forward(problem.inputs[batch].double(), *masked) - problem.goals[batch].double()
        loss = ((difference / scale) ** 2).sum() / difference.numel()
        left = 1 - step / steps
        lr = adam.lr * (adam.decay[0] * left + adam.decay[1] * (1 - left))
        rising = math.ceil(adam.warmup * steps)
        if step < rising:
            lr *= (step + 1) / (rising + 1)
        for place, gradient in enumerate(torch.autograd.grad(loss, leaves)):
            m[place] = first_beta * m[place] + (1 - first_beta) * gradient
            v[place] = second_beta * v[place] + (1 - second_beta) * gradient**2
            corrected = m[place] / (1 - first_beta ** (step + 1)), v[place] / (1 - second_beta ** (step + 1))
            weights[place] = weights[place] - lr * corrected[0] / (corrected[1].sqrt() + 1e-8)
    return weights


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.5, 0.999)])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("decay", [(1.0, 0.0), (1.0, 0.6), (0.6, 0.0)])
@pytest.mark.parametrize("scale", [None, torch.logspace(-1, 1, _HIDDEN)])
@pytest.mark.parametrize("warmup", [0.0, 0.125, 0.4])
def test_every_step_is_the_one_of_the_formula(
    batch_size: int, betas: tuple[float, float], decay: tuple[float, float], scale: Tensor | None, warmup: float
) -> None:
    problem = _Network()
    problem.scale = scale
    start = problem.state()
    adam = Adam(epochs=4, lr=0.01, batch_size=batch_size, betas=betas, guard=False, decay=decay, warmup=warmup)
    adam.fit(problem, 0, _nothing)
    steps = 4 * math.ceil(_SAMPLES / batch_size)
    assert len(problem.batches) == steps
    expected = _twin(problem, start, problem.batches, adam, steps)
    for found, wanted in zip(problem.state(), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_by_itself_it_is_as_in_the_paper() -> None:
    """A learning rate of 2e-4 that falls linearly to 0, from the first step on, in 10 epochs of batches of 8."""
    paper = Adam(10, 2e-4, 8, betas=(0.9, 0.95), decay=(1.0, 0.0), warmup=0.0, try_first_step=False, relative=False)
    assert Adam() == paper


def test_a_relative_rate_is_a_share_of_the_kept_weights_root_mean_square() -> None:
    """Only pruned matrices count; if none is marked as such, all parameters do."""
    problem, plain = _Network(), _Network()
    pruned, mask = problem.state()[0], problem.masks[0]
    assert mask is not None
    rms = math.sqrt(sum(value**2 for value in pruned[mask].tolist()) / int(mask.sum()))
    assert kept_rms(problem) == pytest.approx(rms, rel=1e-6)
    fit = Adam(epochs=3, lr=0.02, batch_size=2, relative=True).fit(problem, 0, _nothing)
    assert [epoch.lr for epoch in fit.epochs] == [pytest.approx(0.02 * rms, rel=1e-6)] * 3, "what it came to is told"
    absolute = Adam(epochs=3, lr=fit.epochs[0].lr, batch_size=2).fit(plain, 0, _nothing)
    assert (fit.relative_lr, absolute.relative_lr) == (0.02, pytest.approx(0.02, rel=1e-6))
    assert _same(problem.state(), plain.state())
    plain.masks = [None, None, torch.zeros_like(plain.parameters[2], dtype=torch.bool)]
    plain.sized = [False, False, True]
    with torch.no_grad():
        plain.parameters[2].zero_()
    assert kept_rms(plain) == 0.0, "of a matrix of which nothing is kept"
    plain = _Network()
    plain.masks[1] = torch.ones_like(plain.parameters[1], dtype=torch.bool)
    assert kept_rms(plain) == pytest.approx(rms, rel=1e-6), "a mask alone is that of a pruning before"
    plain = _Network()
    plain.masks, plain.sized = [None, None, None], [False, False, False]
    everything = [value for parameter in plain.state() for value in parameter.flatten().tolist()]
    assert kept_rms(plain) == pytest.approx(math.sqrt(sum(v**2 for v in everything) / len(everything)), rel=1e-6)


@pytest.mark.parametrize("relative", [True, False])
def test_weights_that_are_all_zero_have_a_size_of_one(relative: bool) -> None:
    problem = _Network()
    with torch.no_grad():
        for parameter in problem.parameters[::2]:
            parameter.zero_()
    fit = Adam(epochs=1, lr=0.02, batch_size=2, relative=relative).fit(problem, 0, _nothing)
    assert (fit.epochs[0].lr, fit.relative_lr) == (0.02, 0.02)


def test_the_rate_on_record_is_the_highest_of_a_descent() -> None:
    problem = _Network()
    size = kept_rms(problem)
    fit = Adam(epochs=2, lr=0.02, batch_size=2, decay=(0.5, 0.0), warmup=0.2).fit(problem, 0, _nothing)
    assert [epoch.lr for epoch in fit.epochs] == [0.01, 0.01]
    assert [epoch.relative_lr for epoch in fit.epochs] == pytest.approx([0.01 / size] * 2)
    assert fit.relative_lr == pytest.approx(0.02 / size), "as it was asked for"


@pytest.mark.parametrize("standardized", [False, True])
def test_an_epochs_heldout_error_is_in_the_measure_of_the_loss_and_as_the_guard_looks_at_it(standardized: bool) -> None:
    class Judged(_Network):
        def heldout_error(self) -> Error:
            return replace(super().heldout_error(), standardized=3.0)

    problem = Judged()
    problem.scale = torch.ones(_HIDDEN) if standardized else None
    fit = Adam(epochs=1, lr=0.01, batch_size=2, guard=False).fit(problem, 0, _nothing)
    end = problem.heldout_error()
    assert (fit.epochs[0].heldout, fit.epochs[0].judged) == (3.0 if standardized else end.relative, 3.0)


@pytest.mark.parametrize("size", [0.125, 8.0])
def test_with_a_relative_rate_the_units_of_the_weights_do_not_matter(size: float) -> None:
    """Weights twice as large on inputs half as large are the same network: each step is the same share of them."""
    ends = []
    for factor in (1.0, size):
        problem = _OneMatrix(factor)
        Adam(epochs=4, lr=0.01, batch_size=2, relative=True).fit(problem, 0, _nothing)
        ends.append(problem.state()[0] / factor)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)
    assert (ends[0] - _OneMatrix(1.0).state()[0]).abs().max() > 0.02, "or this shows nothing"


@pytest.mark.parametrize("guard", [True, False])
def test_masked_weights_stay_exactly_zero(guard: bool) -> None:
    problem = _Network()
    start = problem.state()
    Adam(epochs=5, lr=0.05, batch_size=2, guard=guard).fit(problem, 0, _nothing)
    mask = problem.masks[0]
    assert mask is not None
    masked = problem.parameters[0].detach()[~mask]
    assert (masked == 0).all()
    assert not torch.signbit(masked).any()
    assert all((now != was).any() for now, was in zip(problem.state(), start, strict=True))


def test_fitting_lowers_the_error_and_says_by_how_much() -> None:
    problem = _Network()
    before = problem.errors()
    seen: list[Epoch] = []
    fit = Adam(epochs=20, lr=0.02, batch_size=2, patience=20).fit(problem, 0, seen.append)
    assert fit.before == before
    assert tuple(seen) == fit.epochs
    assert [epoch.number for epoch in fit.epochs] == list(range(1, 21))
    assert problem.errors().calibration.normalized < 0.5 * before.calibration.normalized
    assert problem.heldout_error().relative == min(epoch.heldout for epoch in fit.epochs)


def test_an_epochs_calibration_error_is_the_relative_one_over_all_samples() -> None:
    problem = _Network()
    # Batches of 3, 3 and 1: the last counts for a third of the others. No step is large enough to matter.
    fit = Adam(epochs=1, lr=1e-12, batch_size=3).fit(problem, 0, _nothing)
    assert fit.epochs[0].calibration == pytest.approx(problem.errors().calibration.relative, rel=1e-5)


def test_losses_are_read_after_the_last_step_of_their_epoch_and_targets_are_asked_for_before_outputs() -> None:
    """Reading losses waits for a GPU; targets are sent to it while it computes what was asked for before."""
    seen = ""

    class Told(_Network):
        def outputs(self, samples: Tensor) -> Tensor:
            nonlocal seen
            seen += "o"
            return super().outputs(samples)

        def targets(self, samples: Tensor) -> Tensor:
            nonlocal seen
            seen += "t"
            return super().targets(samples)

    class Reading(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal seen
            seen += "r" * (func is torch.ops.aten._local_scalar_dense.default)
            return func(*args, **(kwargs or {}))

    problem = Told()
    problem.scale = torch.ones(_HIDDEN)
    with Reading():
        Adam(epochs=2, lr=0.01, batch_size=3, guard=False).fit(problem, 0, _nothing)
    assert [*filter(None, seen.split("r"))] == ["tototo", "tototo"]


def test_parameters_record_gradients_while_they_are_fitted_and_leave_none_behind() -> None:
    problem = _Network()
    problem.parameters[0].requires_grad_(False)
    with pytest.raises(NumericalError, match=r"window 3: it went bad"), problem.fitting("window 3"):
        assert all(parameter.requires_grad for parameter in problem.parameters)
        problem.loss(torch.arange(2)).backward()
        raise NumericalError("it went bad")
    assert not any(parameter.requires_grad for parameter in problem.parameters)
    assert all(parameter.grad is None for parameter in problem.parameters)


def test_targets_that_are_all_zero_are_fitted() -> None:
    problem = _Network()
    problem.goals.zero_()
    before = problem.errors().calibration.normalized
    Adam(epochs=5, lr=0.05, batch_size=2).fit(problem, 0, _nothing)
    assert problem.errors().calibration.normalized < before


def test_where_there_is_no_error_no_step_is_taken() -> None:
    problem = _Network()
    problem.goals = problem._run(problem.inputs).detach()
    start = problem.state()
    assert Adam(epochs=5, lr=0.05).fit(problem, 0, _nothing) == Fit(problem.errors())
    assert problem.batches == []
    assert _same(problem.state(), start)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8])
def test_an_epoch_takes_every_sample_once_in_an_order_of_its_own(batch_size: int) -> None:
    problem = _Network()
    Adam(epochs=3, batch_size=batch_size).fit(problem, 0, _nothing)
    taken = torch.cat(problem.batches).reshape(3, _SAMPLES)
    assert all(sorted(epoch) == list(range(_SAMPLES)) for epoch in taken.tolist())
    assert len({tuple(epoch) for epoch in taken.tolist()}) == 3
    assert all(len(batch) <= batch_size for batch in problem.batches)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_order() -> None:
    fits: list[tuple[Fit, _Network]] = []
    for seed in (3, 3, 4):
        problem = _Network()
        torch.manual_seed(len(fits))  # the global generator must not matter
        fits.append((Adam(epochs=2, lr=0.01, batch_size=2).fit(problem, seed, _nothing), problem))
    assert fits[0][0] == fits[1][0]
    assert _same(fits[0][1].state(), fits[1][1].state())
    assert _same(fits[0][1].batches, fits[1][1].batches)
    assert torch.cat(fits[0][1].batches).tolist() != torch.cat(fits[2][1].batches).tolist()


def test_a_fit_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Adam(epochs=1).fit(_Network(), 5, _nothing)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_solver_changes_nothing_and_measures_nothing() -> None:
    problem = _Network()
    start = problem.state()
    called: list[Epoch] = []
    append: Callable[[Epoch], None] = called.append
    assert NoSolver().fit(problem, 0, append) == Fit(None, (), planned_epochs=0, kept_epoch=0, guarded=False)
    assert _same(problem.state(), start)
    assert not called
    assert not problem.batches


@pytest.mark.parametrize(("batch_size", "micro"), [(4, 1), (4, 3), (5, 5), (100, 2)])
def test_micro_batches_take_the_same_steps(batch_size: int, micro: int) -> None:
    whole, parts = _Network(), _Network()
    adam = Adam(epochs=3, lr=0.01, batch_size=batch_size)
    one, other = adam.fit(whole, 0, _nothing), replace(adam, micro_batch_size=micro).fit(parts, 0, _nothing)
    for found, wanted in zip(parts.state(), whole.state(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert [epoch.calibration for epoch in one.epochs] == pytest.approx([epoch.calibration for epoch in other.epochs])
    assert max(map(len, parts.batches)) <= micro
    assert torch.cat(parts.batches).equal(torch.cat(whole.batches))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("micro", [None, 1, 2, 3])
def test_the_sizes_of_batches_are_known_before(batch_size: int, micro: int | None) -> None:
    problem = _Network()
    adam = Adam(epochs=1, batch_size=batch_size, micro_batch_size=micro)
    adam.fit(problem, 0, _nothing)
    assert adam.batch_sizes(_SAMPLES) == set(map(len, problem.batches))


@pytest.mark.parametrize("adam", [Adam(epochs=3, lr=1e-2), Adam(epochs=3, lr=1e-2, compact=True)])
def test_it_takes_its_steps_where_a_caller_has_turned_gradients_off(adam: Adam) -> None:
    ordinary, problem = _Network(), _Network()
    adam.fit(ordinary, 0, _nothing)
    with torch.no_grad():
        adam.fit(problem, 0, _nothing)
    assert _same(problem.state(), ordinary.state())
