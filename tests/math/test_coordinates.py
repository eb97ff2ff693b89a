"""Low-rank updates move as LoRA's do, start where the window is, and leave masked weights at zero."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reprune.math.adam import Adam
from reprune.math.coordinates import AllWeights, KeptWeights, LowRank
from tests.math.test_adam import _forward, _Network, _nothing, _same
from tests.math.test_masking import Picking


def _factors(problem: _Network, rank: int, seed: int = 0) -> list[Tensor]:
    """A copy of the leaves that a problem's low-rank coordinates begin with."""
    with LowRank(problem, rank, seed) as coordinates:
        return [leaf.detach().clone() for leaf in coordinates.leaves]


def test_all_weights_are_the_parameters_themselves() -> None:
    problem = _Network()
    with AllWeights(problem) as coordinates:
        assert coordinates.leaves is problem.parameters


def test_every_step_is_the_one_of_plain_factors() -> None:
    """The twin: W0 + mask * (B A) written into the forward pass, and torch's own Adam on B and A."""
    problem, twin = _Network(), _Network()
    Adam(epochs=3, lr=0.02, batch_size=2, guard=False, rank=1).fit(problem, 0, _nothing)

    first, _, second = twin.state()
    leaves = [nn.Parameter(leaf) for leaf in _factors(twin, 1)]
    B1, A1, b, B2, A2 = leaves
    optimizer = torch.optim.Adam(leaves, lr=0.02, betas=(0.9, 0.95))
    steps, power = len(problem.batches), twin.target_power()
    for step, batch in enumerate(problem.batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        outputs = _forward(twin.inputs[batch], first + twin.masks[0] * (B1 @ A1), b, second + B2 @ A2)
        optimizer.zero_grad()
        ((outputs - twin.goals[batch]).square().mean() / power).backward()
        optimizer.step()
    with torch.no_grad():
        expected = [first + twin.masks[0] * (B1 @ A1), b, second + B2 @ A2]
    for found, wanted in zip(problem.state(), expected, strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)
    assert int(torch.linalg.matrix_rank(problem.state()[2] - second)) == 1


def test_factors_are_decided_by_the_seed() -> None:
    one, again, other = (_factors(_Network(), 2, seed) for seed in (3, 3, 4))
    assert _same(one, again)
    assert not _same(one, other)


@pytest.mark.parametrize("guard", [True, False])
def test_masked_weights_stay_exactly_zero(guard: bool) -> None:
    problem = _Network()
    Adam(epochs=4, lr=0.05, batch_size=2, guard=guard, rank=2).fit(problem, 0, _nothing)
    weight, mask = problem.state()[0], problem.masks[0]
    assert mask is not None
    assert not weight[~mask].any()
    assert weight[mask].all()


def test_the_guard_puts_the_start_back_to_the_last_bit() -> None:
    problem = _Network(contrary=True)
    start = problem.state()
    fit = Adam(epochs=4, lr=0.05, batch_size=2, rank=2).fit(problem, 0, _nothing)
    assert fit.kept_epoch == 0
    assert _same(problem.state(), start)


def test_the_kept_state_is_that_of_the_lowest_heldout_error() -> None:
    problem = _Network()
    fit = Adam(epochs=12, lr=0.1, batch_size=2, patience=12, rank=2).fit(problem, 0, _nothing)
    lowest = min(epoch.heldout for epoch in fit.epochs)
    assert problem.heldout_error().relative == pytest.approx(lowest, rel=1e-5)


def test_micro_batches_take_the_same_steps() -> None:
    whole, parts = _Network(), _Network()
    Adam(epochs=3, lr=0.01, batch_size=4, rank=2).fit(whole, 0, _nothing)
    Adam(epochs=3, lr=0.01, batch_size=4, rank=2, micro_batch_size=1).fit(parts, 0, _nothing)
    for found, wanted in zip(parts.state(), whole.state(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_matrix_no_larger_than_its_factors_is_moved_itself() -> None:
    problem = _Network()
    with LowRank(problem, 3, 0) as coordinates:  # 3 x (6 + 4) is more than 6 x 4
        assert [id(leaf) for leaf in coordinates.leaves] == [id(parameter) for parameter in problem.parameters]
    mask = problem.masks[0]
    assert mask is not None
    Adam(epochs=2, lr=0.05, batch_size=2, rank=3).fit(problem, 0, _nothing)
    assert not problem.state()[0][~mask].any()


def test_no_gradient_of_full_size_is_left_and_no_hook() -> None:
    problem = _Network()
    with LowRank(problem, 1, 0) as coordinates:
        problem.outputs(torch.arange(3)).square().sum().backward()
        assert [parameter.grad is None for parameter in problem.parameters] == [True, False, True]
        assert all(leaf.grad is not None for leaf in coordinates.leaves)
    problem.outputs(torch.arange(3)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in problem.parameters)


def test_the_first_step_is_as_long_as_without_factors() -> None:
    """Adam's first step moves each value by the learning rate; B A then moves the weights by as much on average."""

    class Wide(_Network):
        def __init__(self) -> None:
            super().__init__()
            self.parameters = [nn.Parameter(torch.randn(40, 30, generator=torch.Generator().manual_seed(1)))]
            self.masks = [None]

    lengths = []
    for rank in (None, 1, 8):
        problem = Wide()
        weight = problem.parameters[0]
        start = weight.detach().clone()
        with AllWeights(problem) if rank is None else LowRank(problem, rank, 0) as coordinates:
            optimizer = torch.optim.Adam(list(coordinates.leaves), lr=0.01)
            weight.square().sum().backward()
            coordinates.pull_()
            optimizer.step()
            coordinates.push_()
        lengths.append(float((weight.detach() - start).square().mean().sqrt()))
    assert lengths[0] == pytest.approx(0.01, rel=1e-3)
    assert lengths[1:] == pytest.approx([0.01, 0.01], rel=0.35)


def test_the_leaves_of_kept_weights_are_what_masks_keep_and_what_has_none() -> None:
    problem = _Network()
    mask = problem.masks[0]
    assert mask is not None
    with KeptWeights(problem) as coordinates:
        first, *others = coordinates.leaves
        assert torch.equal(first, problem.parameters[0][mask])
        assert all(leaf is parameter for leaf, parameter in zip(others, problem.parameters[1:], strict=True))


@pytest.mark.parametrize("micro", [None, 1])
@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("lr", [0.01, 0.3])
@pytest.mark.parametrize("warmup", [0.0, 0.4])
def test_kept_weights_alone_take_the_steps_of_all_weights(
    micro: int | None, guard: bool, lr: float, warmup: float
) -> None:
    every, kept = _Network(), _Network()
    adam = Adam(4, lr, batch_size=4, micro_batch_size=micro, guard=guard, try_first_step=True, warmup=warmup)
    one = adam.fit(every, 3, _nothing)
    other = replace(adam, compact=True).fit(kept, 3, _nothing)
    assert one.kept_epoch == other.kept_epoch
    for found, wanted in zip(kept.state(), every.state(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    mask = kept.masks[0]
    assert mask is not None
    assert not kept.state()[0][~mask].any()


def test_no_gradient_of_full_size_outlives_its_backward_pass() -> None:
    problem = _Network()
    with KeptWeights(problem) as coordinates:
        for _ in range(2):
            problem.outputs(torch.arange(3)).square().sum().backward()
        assert problem.parameters[0].grad is None
        summed = coordinates.leaves[0].grad
        assert summed is not None
    problem.outputs(torch.arange(3)).square().sum().backward()
    mask, gradient = problem.masks[0], problem.parameters[0].grad
    assert mask is not None
    assert gradient is not None
    torch.testing.assert_close(summed, 2 * gradient[mask])


def test_the_places_of_kept_weights_are_those_in_one_vector() -> None:
    problem = _Network()
    with Picking() as picking:
        Adam(epochs=1, lr=0.05, batch_size=2, compact=True).fit(problem, 0, _nothing)
    assert {*picking.shapes} == {(problem.parameters[0].numel(),)}


def test_the_guard_puts_the_start_of_kept_weights_back_to_the_last_bit() -> None:
    problem = _Network(contrary=True)
    start = problem.state()
    assert Adam(epochs=4, lr=0.05, batch_size=2, compact=True).fit(problem, 0, _nothing).kept_epoch == 0
    assert _same(problem.state(), start)
