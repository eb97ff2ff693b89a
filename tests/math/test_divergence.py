"""Divergences of predictions, against the formula and against PyTorch's own gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reprune.math.divergence import divergence, summed_divergence

HEAD = torch.randn(5, 11, generator=torch.Generator().manual_seed(3))


def twin(logits: Tensor, of: Tensor) -> Tensor:
    """KL(p || q) word by word, in float64."""
    p, q = (one.double().exp() / one.double().exp().sum(-1, keepdim=True) for one in (of, logits))
    return torch.stack([sum(a * (a / b).log() for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)])


def predict(states: Tensor, ids: Tensor) -> Tensor:
    return (states @ HEAD + ids[..., None]).tanh() * 4  # a cap, whose gradient needs its output


def one_by_one(states: Tensor, ids: Tensor) -> Iterator[tuple[slice, slice]]:
    del states
    for sample in range(ids.shape[0]):
        for token in range(ids.shape[1]):
            yield slice(sample, sample + 1), slice(token, token + 1)


def whole(states: Tensor, ids: Tensor) -> Iterator[tuple[slice, slice]]:
    del states
    yield slice(0, ids.shape[0]), slice(0, ids.shape[1])


@given(st.integers(0, 2**31), st.floats(0.01, 8))
def test_a_divergence_is_that_of_the_formula(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, of = (size * torch.randn(4, 9, generator=generator) for _ in range(2))
    found, p = divergence(logits, of)
    torch.testing.assert_close(found.double(), twin(logits, of), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p, of.softmax(-1))


def test_of_alike_predictions_it_is_zero_whatever_is_added_to_all_words() -> None:
    logits = torch.randn(3, 7)
    found, _ = divergence(logits, logits + 5)
    torch.testing.assert_close(found, torch.zeros(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("parts", [one_by_one, whole])
def test_the_gradient_to_the_states_is_autograds_and_the_sum_the_same_without(parts: object) -> None:
    generator = torch.Generator().manual_seed(0)
    states, of = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    ids = torch.randint(0, 3, (2, 3), generator=generator)
    plain, ours = states.clone().requires_grad_(), states.clone().requires_grad_()
    p = predict(of, ids).softmax(-1)
    expected = (p * (p.log() - predict(plain, ids).log_softmax(-1))).sum()
    (3 * expected).backward()
    found = summed_divergence(ours, of, ids, predict, parts)  # type: ignore[arg-type]  # either of two
    (3 * found).backward()
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(ours.grad, plain.grad)
    without = summed_divergence(states, of, ids, predict, parts)  # type: ignore[arg-type]  # the same
    assert torch.equal(without, found.detach())
