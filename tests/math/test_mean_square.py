"""The mean square and its gradient equal PyTorch's, and only one tensor is kept for the gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from reprune.math.mean_square import mean_square_


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(8, 5, 7), (1, 3, 4), (3, 2, 4, 6)])
@pytest.mark.parametrize("scaled", [False, True])
def test_value_and_gradient_are_those_of_the_formula(shape: tuple[int, ...], scaled: bool) -> None:
    outputs, targets = _drawn(*shape).requires_grad_(), 3 * _drawn(*reversed(shape)).reshape(shape)
    scale = _drawn(shape[-1]).abs() + 0.1 if scaled else None

    twin = outputs - targets if scale is None else (outputs - targets) / scale
    expected = twin.square().mean()
    (gradient,) = torch.autograd.grad(0.3 * expected, outputs)

    found = mean_square_(outputs, targets.clone(), scale)
    (0.3 * found).backward()
    torch.testing.assert_close(found, expected)
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, gradient, rtol=1e-6, atol=0)


def test_the_gradient_is_in_the_memory_of_the_targets() -> None:
    outputs, targets = _drawn(2, 3, 4).requires_grad_(), _drawn(2, 3, 5)[..., 1:].clone()
    (gradient,) = torch.autograd.grad(mean_square_(outputs, targets), outputs)
    assert gradient.data_ptr() == targets.data_ptr()


def test_no_more_than_a_samples_squares_is_made_on_the_way() -> None:
    made: list[int] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
                made.append(out.numel())
            return out

    outputs, targets, scale = _drawn(6, 5, 4).requires_grad_(), _drawn(6, 4, 5).reshape(6, 5, 4), torch.ones(4)
    given = {one.untyped_storage().data_ptr() for one in (outputs, targets)}
    with Watching():
        mean_square_(outputs, targets, scale).backward()
    assert max(made) == 5 * 4


def test_the_gradient_is_not_taken_twice_of_what_it_has_overwritten() -> None:
    outputs = _drawn(2, 3, 4).requires_grad_()
    mean = mean_square_(outputs, torch.zeros(2, 3, 4))
    mean.backward(retain_graph=True)
    with pytest.raises(AttributeError):
        mean.backward()


def test_outputs_that_record_no_gradient_have_their_mean_too() -> None:
    outputs, targets = _drawn(2, 3, 4), _drawn(3, 4, 2).reshape(2, 3, 4)
    assert mean_square_(outputs, targets.clone()) == pytest.approx(float((outputs - targets).square().mean()))
