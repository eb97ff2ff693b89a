"""Linears in half precision are those of autocast, keep an input once and no cast weight, and leave others alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from reprune.model.half_linears import HalfLinears

_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def _half(dtype: torch.dtype) -> Iterator[None]:
    with torch.autocast("cpu", dtype=dtype), HalfLinears():
        yield


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _linear(rows: int, columns: int, bias: bool, seed: int = 1) -> nn.Linear:
    module = nn.Linear(columns, rows, bias=bias)
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(_drawn(*parameter.shape, seed=seed + number))
    return module


@pytest.mark.parametrize("dtype", _HALF)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 5, 12), (0, 12)])
@pytest.mark.parametrize("given", [torch.float32, None])
def test_values_are_autocasts_and_gradients_those_of_the_formula(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype, given: torch.dtype | None
) -> None:
    module, inputs = _linear(7, 12, bias), _drawn(*shape).to(given or dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        expected = module(inputs)
    with _half(dtype):
        found = module(inputs)
    assert found.dtype == dtype and torch.equal(found, expected)

    outer = _drawn(*found.shape, seed=9).to(dtype)
    found.backward(outer)
    X, W, G = (one.detach().to(dtype).double() for one in (inputs, module.weight, outer))
    rows, columns = G.reshape(-1, 7), X.reshape(-1, 12)
    twins = [(inputs, (rows @ W).reshape(shape)), (module.weight, rows.T @ columns)]
    if bias:
        twins.append((module.bias, rows.sum(0)))
    for one, twin in twins:
        assert one.grad is not None and one.grad.dtype == one.dtype
        torch.testing.assert_close(one.grad.double(), twin, rtol=2**-7, atol=2**-5)


def test_linears_that_read_the_same_tensor_keep_it_once_and_weights_as_they_are() -> None:
    linears = [_linear(8, 16, bias=False, seed=seed) for seed in (1, 2, 3)]
    inputs = _drawn(4, 16).requires_grad_()
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _half(torch.bfloat16):
        for one in linears:
            one(inputs)
    weights = {one.weight.data_ptr() for one in linears}
    assert weights < kept.keys()
    (cast,) = (tensor for place, tensor in kept.items() if place not in weights)
    assert cast.dtype == torch.bfloat16 and cast.shape == inputs.shape


def test_the_gradients_of_what_several_read_are_summed_in_float32() -> None:
    """2^-9 beside 1 is lost where two gradients are added in bfloat16."""
    one, other = _linear(1, 1, bias=False), _linear(1, 1, bias=False)
    with torch.no_grad():
        one.weight.fill_(1.0)
        other.weight.fill_(2**-9)
    inputs = torch.ones(1, 1, requires_grad=True)
    with _half(torch.bfloat16):
        (one(inputs).float() + other(inputs).float()).sum().backward()
    assert inputs.grad is not None and inputs.grad.item() == 1 + 2**-9


def test_what_was_written_to_is_cast_anew() -> None:
    module, inputs = _linear(3, 4, bias=False), _drawn(2, 4)
    with _half(torch.bfloat16):
        before = module(inputs)
        inputs.mul_(2)
        assert torch.equal(module(inputs), 2 * before)


@pytest.mark.parametrize("bias", [True, False])
def test_where_autocast_is_off_or_weights_are_fixed_nothing_changes(bias: bool) -> None:
    module, inputs = _linear(7, 12, bias), _drawn(5, 12)
    with _half(torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(module(inputs), linear(inputs, module.weight, module.bias))
        module.requires_grad_(False)
        fixed = module(inputs)
    assert not fixed.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(inputs), fixed)


def test_a_weight_may_be_a_part_of_a_parameter() -> None:
    stack, inputs = _drawn(2, 3, 4).requires_grad_(), _drawn(5, 4)
    with _half(torch.bfloat16):
        linear(inputs, weight=stack[1]).float().sum().backward()
    assert stack.grad is not None and not stack.grad[0].any()
    torch.testing.assert_close(stack.grad[1], inputs.sum(0).expand(3, 4), rtol=2**-6, atol=2**-5)
