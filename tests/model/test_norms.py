"""Root mean square norms are found by what they compute; their values and gradients are those of the formula."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from reprune.model.norms import as_one, find_norms

_HIDDEN, _EPSILON = 24, 1e-3
_NORMS = [(LlamaRMSNorm, 0.0), (Gemma3RMSNorm, 1.0), (nn.RMSNorm, 0.0)]
norms = pytest.mark.parametrize(("kind", "offset"), _NORMS)


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _norm(kind: type[nn.Module]) -> nn.Module:
    module = kind(_HIDDEN, eps=_EPSILON)
    assert isinstance(module.weight, nn.Parameter)
    with torch.no_grad():
        module.weight.copy_(_drawn(_HIDDEN, seed=1))
    return module


def _twin(states: Tensor, weight: Tensor, offset: float) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + _EPSILON).sqrt() * (offset + weight)


def _told(*_: Tensor) -> None:
    pass


@norms
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_they_are_found_whatever_their_weights(kind: type[nn.Module], offset: float, device: str) -> None:
    block = nn.ModuleDict({"a": kind(_HIDDEN, eps=_EPSILON), "b": nn.Linear(_HIDDEN, _HIDDEN)}).to(device)
    (found,) = find_norms(block)
    assert found.module is block["a"] and found.offset == offset and found.epsilon == _EPSILON


class _Centred(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))


class _OtherEpsilon(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return (
            self.weight * hidden_states / (hidden_states.square().mean(-1, keepdim=True).sqrt() + self.variance_epsilon)
        )


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(_HIDDEN),
        nn.Linear(_HIDDEN, 3),
        _Centred(_HIDDEN),
        _OtherEpsilon(_HIDDEN, eps=1e-3),
        _OtherEpsilon(_HIDDEN, eps=1e-6),  # only small states show the difference
        nn.RMSNorm((2, _HIDDEN), eps=1e-3),
        nn.RMSNorm(_HIDDEN),
        nn.Embedding(4, _HIDDEN),
    ],
)
def test_what_does_something_else_is_not_found(module: nn.Module) -> None:
    assert find_norms(nn.ModuleList([module])) == []


@norms
@pytest.mark.parametrize("shape", [(_HIDDEN,), (5, _HIDDEN), (2, 5, _HIDDEN), (2, 5, 3, _HIDDEN), (0, _HIDDEN)])
@pytest.mark.parametrize("moved", [False, True, None])
@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_values_and_gradients_are_those_of_the_formula(
    kind: type[nn.Module], offset: float, shape: tuple[int, ...], moved: bool | None, size: float
) -> None:
    module, states = _norm(kind), size * _drawn(*shape, seed=2)
    if moved and len(shape) > 2:  # as for heads before attention
        states = states.transpose(-3, -2)
    if moved is None and len(shape) > 3:  # all dimensions permuted
        states = states.permute(2, 0, 1, 3)
    states.requires_grad_()
    exact, weight = states.detach().double().requires_grad_(), module.weight.detach().double().requires_grad_()
    expected = _twin(exact, weight, offset)
    outer = _drawn(*states.shape, seed=3)
    expected.backward(outer.double())
    with as_one(find_norms(nn.ModuleList([module])), _told):
        found = module(states)
    assert torch.equal(found, module(states))
    found.backward(outer)
    for one, other in [(found, expected), (states.grad, exact.grad), (module.weight.grad, weight.grad)]:
        assert one is not None and other is not None
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@norms
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # PyTorch's own norm expects equal dtypes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_values_and_dtypes_are_the_modules_own(
    kind: type[nn.Module], offset: float, dtype: torch.dtype
) -> None:
    module, states = _norm(kind), _drawn(2, 3, _HIDDEN, seed=2).to(dtype).requires_grad_()
    expected = module(states.detach())
    with as_one(find_norms(nn.ModuleList([module])), _told):
        found = module(states)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    found.float().square().sum().backward()
    assert states.grad is not None and states.grad.dtype == dtype and module.weight.grad is not None


def test_only_what_enters_is_kept_for_the_gradients() -> None:
    module, states = _norm(LlamaRMSNorm), _drawn(64, _HIDDEN).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {states.data_ptr(), module.weight.data_ptr()}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        as_one(find_norms(nn.ModuleList([module])), _told),
    ):
        module(states)
    assert sum(size for place, size in kept.items() if place not in own) == 64 * 4, "a factor of each token"


class _Gated(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate.sigmoid())


def test_a_norm_that_is_given_more_runs_as_it_is() -> None:
    module = _Gated(_HIDDEN, eps=_EPSILON)
    states, gate = _drawn(3, _HIDDEN), _drawn(3, _HIDDEN, seed=1)
    expected = module(states, gate)
    (found,) = find_norms(nn.ModuleList([module]))
    with as_one([found], _told):
        assert torch.equal(module(states, gate), expected)
        assert torch.equal(module(hidden_states=states, gate=gate), expected)


def test_a_norm_that_runs_another_forward_than_its_classs_is_left_as_it_is() -> None:
    module = _norm(LlamaRMSNorm)
    module.forward = given = partial(LlamaRMSNorm.forward, module)  # as other libraries' hooks do
    with as_one(find_norms(nn.ModuleList([module])), _told):
        assert module.forward is given
    assert module.forward is given


@norms
def test_outside_the_context_modules_are_as_they_were(kind: type[nn.Module], offset: float) -> None:
    module = _norm(kind)
    with pytest.raises(ZeroDivisionError), as_one(find_norms(nn.ModuleList([module])), _told):
        assert "forward" in vars(module)
        raise ZeroDivisionError
    assert "forward" not in vars(module)


@pytest.mark.parametrize("inputs_too", [False, True])
@pytest.mark.parametrize("weights_too", [False, True])
def test_it_is_told_where_a_gradient_is_wanted_of_the_scale_alone(inputs_too: bool, weights_too: bool) -> None:
    module, states = _norm(Gemma3RMSNorm), _drawn(3, _HIDDEN).requires_grad_(inputs_too)
    module.weight.requires_grad_(weights_too)
    told: list[tuple[Tensor, Tensor]] = []
    with as_one(find_norms(nn.ModuleList([module])), lambda *both: told.append(both)):
        outputs = module(states)
    assert bool(told) == (weights_too and not inputs_too)
    for seen, scale in told:
        assert seen is outputs and torch.equal(scale, module.weight + 1.0)
