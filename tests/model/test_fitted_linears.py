"""Fitted linears compute what autocast does, keep each input once and no cast weight, and leave others alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from reprune.model.fitted_linears import FittedLinears

_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def _half(dtype: torch.dtype) -> Iterator[None]:
    with torch.autocast("cpu", dtype=dtype), FittedLinears():
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
    """Adding two gradients in bfloat16 would lose 2^-9 beside 1."""
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
def test_where_autocast_is_off_or_weights_are_fixed_values_are_as_they_were(bias: bool) -> None:
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


@pytest.mark.parametrize("bias", [True, False])
def test_in_float32_gradients_are_those_of_the_plain_linear(bias: bool) -> None:
    module, inputs, outer = _linear(7, 12, bias), _drawn(2, 5, 12).requires_grad_(), _drawn(2, 5, 7, seed=9)
    module(inputs).backward(outer)
    expected = [one.grad.clone() for one in (inputs, *module.parameters()) if one.grad is not None]
    for one in (inputs, *module.parameters()):
        one.grad = None
    with FittedLinears():
        module(inputs).backward(outer)
    for one, twin in zip((inputs, *module.parameters()), expected, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 5, 12), (2, 3, 5, 12)])
def test_what_is_put_out_may_be_worked_on_in_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    module, inputs = _linear(7, 12, bias=True), _drawn(*shape).requires_grad_()
    gradients = []
    for in_place in (False, True):
        with _in(dtype):
            outputs = module(inputs)
            loss = outputs.relu_().float().sum() if in_place else outputs.relu().float().sum()
        gradients.append(torch.autograd.grad(loss, (inputs, *module.parameters())))
    assert all(torch.equal(one, twin) for one, twin in zip(*gradients, strict=True))


@contextmanager
def _in(dtype: torch.dtype) -> Iterator[FittedLinears]:
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32), FittedLinears() as linears:
        yield linears


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("least", [0.5, 0.0])
def test_a_scale_has_its_gradient_of_that_of_the_weights(dtype: torch.dtype, others: bool, least: float) -> None:
    """Also if something else reads the states, and if the scale is too small to divide by."""
    first, second = _linear(7, 12, bias=True), _linear(5, 12, bias=False, seed=5)
    states, scale = _drawn(2, 9, 12), (least + _drawn(12, seed=3).abs()).requires_grad_()
    if not least:
        with torch.no_grad():
            scale[4] = 0.0
    exact_scale = scale.detach().double().requires_grad_()

    def loss(scaled: Tensor, one: Tensor, other: Tensor) -> Tensor:
        total = one.double().square().mean() + other.double().sin().mean()
        return total + scaled.double().pow(3).mean() if others else total

    with _in(dtype) as linears:
        scaled = states * scale
        linears.scaled(scaled, scale)
        found = loss(scaled, first(scaled), second(scaled))
    found.backward()
    scaled_twin = states.double() * exact_scale
    W, V = first.weight.detach().double(), second.weight.detach().double()
    loss(scaled_twin, linear(scaled_twin, W, first.bias.detach().double()), linear(scaled_twin, V)).backward()
    assert scale.grad is not None and exact_scale.grad is not None
    difference = (scale.grad.double() - exact_scale.grad).norm() / exact_scale.grad.norm()
    assert difference < (1e-5 if dtype == torch.float32 else 2**-6)


@pytest.mark.parametrize(
    ("sizes", "without"),
    [((2.0, 2.0), True), ((-2.0, 3.0), True), ((2e-6, -2e-6), True), ((1e6, 1.0), False), ((-1e6, -1.0), False)],
)
def test_no_gradient_of_the_states_is_made_where_that_of_their_scale_will_do(
    sizes: tuple[float, float], without: bool
) -> None:
    """Whatever the scale's signs and size, unless some of its values are far smaller than others."""
    module, states, made = _linear(7, 12, bias=False), _drawn(9, 12), list[Tensor]()
    scale = torch.tensor(sizes).repeat(6).requires_grad_()
    with _in(torch.float32) as linears:
        scaled = states * scale
        scaled.register_hook(made.append)
        linears.scaled(scaled, scale)
        module(scaled).sum().backward()
    assert (not made) is without
    torch.testing.assert_close(scale.grad, (states * module.weight.detach().sum(0)).sum(0))


def test_what_a_plain_linear_does_in_other_dtypes_it_does_here() -> None:
    module, inputs = _linear(3, 4, bias=True), _drawn(2, 4)
    with FittedLinears():
        for weights, given in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
            with pytest.raises(RuntimeError, match="dtype"):
                module.to(weights)(inputs.to(given))
        assert module.double()(inputs.double()).dtype == torch.float64


def test_states_that_were_written_to_are_no_longer_known() -> None:
    module, states = _linear(7, 12, bias=False), _drawn(9, 12)
    scale = torch.full((12,), 2.0, requires_grad=True)
    with _in(torch.float32) as linears:
        scaled = states * scale
        linears.scaled(scaled, scale)
        scaled.add_(1.0)
        module(scaled).sum().backward()
    torch.testing.assert_close(scale.grad, (states * module.weight.detach().sum(0)).sum(0))
