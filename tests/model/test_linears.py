"""Every linear is a matrix of outputs by inputs, however it is stored; other matrices are not linears."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from reprune.model.linears import Linear, Stack, find_linears, find_routers, other_matrices

_CASES = {"nn.Linear": lambda: nn.Linear(4, 6), "Conv1D": lambda: Conv1D(6, 4)}  # with 4 inputs and 6 outputs
linears = pytest.mark.parametrize("module", [make() for make in _CASES.values()], ids=list(_CASES))


@linears
def test_the_matrix_times_the_inputs_is_the_output(module: nn.Module) -> None:
    linear = Linear.of("fc", module)
    X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert linear.shape == (6, 4) == tuple(linear.matrix().shape)
    bias = module.bias
    assert isinstance(bias, nn.Parameter)
    torch.testing.assert_close(X @ linear.matrix().T + bias, module(X))


@linears
def test_the_matrix_shares_its_memory_with_the_parameter(module: nn.Module) -> None:
    linear = Linear.of("fc", module)
    matrix = linear.matrix()
    assert not matrix.requires_grad
    matrix[2, 3] = 7.0
    assert (linear.parameter == 7.0).sum() == 1
    assert linear.parameter.requires_grad


@linears
def test_a_matrix_is_set_in_place(module: nn.Module) -> None:
    linear = Linear.of("fc", module)
    parameter, matrix = linear.parameter, torch.arange(24.0).reshape(6, 4)
    linear.set_(matrix)
    assert linear.parameter is parameter
    assert torch.equal(linear.matrix(), matrix)
    assert parameter.grad_fn is None
    with pytest.raises(RuntimeError):
        linear.set_(matrix.T)


@linears
def test_what_lies_where_the_matrix_does_is_found_in_any_tensor_of_the_parameters_shape(module: nn.Module) -> None:
    linear = Linear.of("fc", module)
    mask = torch.ones(linear.parameter.shape, dtype=torch.bool)
    linear.of_layout(mask)[2] = False  # an output
    linear.matrix().copy_(torch.arange(24.0).reshape(6, 4))
    assert linear.parameter.detach()[~mask].tolist() == [8.0, 9.0, 10.0, 11.0]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_matrices_of_a_stack_lie_one_after_the_other(transposed: bool) -> None:
    block = nn.Module()
    layout = (3, 4, 6) if transposed else (3, 6, 4)
    block.register_parameter("weight", nn.Parameter(torch.randn(layout, generator=torch.Generator().manual_seed(0))))
    stack = Stack("weight", 3, (6, 4), (1, 6) if transposed else (4, 1), "weight", 1.0)
    found = find_linears(block, [stack])
    assert [linear.name for linear in found] == ["weight.0", "weight.1", "weight.2"]
    assert [linear.number for linear in found] == [0, 1, 2]
    for number, linear in enumerate(found):
        whole = block.get_parameter("weight").detach()[number]
        assert torch.equal(linear.matrix(), whole.T if transposed else whole)
        linear.set_(torch.full((6, 4), float(number)))
    assert block.get_parameter("weight").detach().mean(dim=(1, 2)).tolist() == [0.0, 1.0, 2.0]
    assert other_matrices(block, [stack]) == {}


class _Subclass(nn.Linear):
    """A linear of a class of its own, as remote code may have."""


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"qkv": Conv1D(12, 4), "norm": nn.LayerNorm(4)})
        self.experts = nn.Parameter(torch.zeros(2, 4, 4))
        self.mixer = nn.Parameter(torch.zeros(4, 4))
        self.scale = nn.Parameter(torch.zeros(4))
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), _Subclass(6, 4))
        self.table = nn.Embedding(3, 4)
        self.convolution = nn.Conv1d(4, 4, 3)


def test_all_linears_of_a_block_are_found_in_the_order_of_its_modules() -> None:
    found = find_linears(_Block())
    assert [linear.name for linear in found] == ["attention.qkv", "mlp.0", "mlp.2"]
    assert [linear.strides for linear in found] == [(1, 12), (4, 1), (6, 1)]
    assert find_linears(nn.LayerNorm(4)) == []


def test_matrices_that_no_linear_holds_are_named_with_their_shapes() -> None:
    assert other_matrices(_Block()) == {
        "experts": (2, 4, 4),
        "mixer": (4, 4),
        "table.weight": (3, 4),
        "convolution.weight": (4, 4, 3),
    }
    assert other_matrices(nn.Linear(4, 6)) == {}


class _Mixture(nn.Module):
    """Two kinds of experts, each with its router, and other linears."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.gate = nn.Linear(4, 3)
        self.mlp.experts = nn.Module()
        self.mlp.experts.register_parameter("up", nn.Parameter(torch.zeros(3, 6, 4)))
        self.mlp.shared = nn.Linear(4, 6)
        self.mlp.shared_gate = nn.Linear(4, 1)
        self.listed = nn.Module()
        self.listed.router = nn.Linear(4, 2)
        self.listed.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
        self.attention = nn.Linear(4, 3)


def test_routers_are_the_linears_beside_experts_that_have_an_output_for_each_or_one_for_all() -> None:
    stack = Stack("mlp.experts.up", 3, (6, 4), (4, 1), "mlp.experts.up", 1.0)
    assert find_routers(_Mixture(), [stack]) == {"mlp.gate", "mlp.shared_gate", "listed.router"}
    heads = Stack("mlp.experts.up", 3, (6, 4), (4, 1), "mlp.experts.up", 3.0)  # every token passes through all
    assert find_routers(_Mixture(), [heads]) == {"listed.router"}


def test_a_router_has_one_more_output_where_a_token_may_be_sent_to_no_expert() -> None:
    """As in Zaya, whose router has several layers."""
    block = _Mixture()
    block.mlp.gate = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6))
    stack = Stack("mlp.experts.up", 5, (6, 4), (4, 1), "mlp.experts.up", 1.0)
    block.mlp.shared = nn.Linear(4, 9)
    assert find_routers(block, [stack]) == {"mlp.gate.0", "mlp.gate.1", "mlp.shared_gate", "listed.router"}


def test_a_router_is_found_where_experts_are_directly_in_the_block() -> None:
    """As in Gemma 4."""
    block = nn.ModuleDict({"router": nn.ModuleDict({"proj": nn.Linear(4, 3)}), "mlp": nn.Linear(4, 6)})
    stack = Stack("experts.up", 3, (6, 4), (4, 1), "experts.up", 1.0)
    assert find_routers(block, [stack]) == {"router.proj"}


def test_linears_that_are_no_chain_are_no_layers_of_a_router() -> None:
    """Such as an attention with a gate for each head, in a block with as many experts as heads."""
    block = nn.ModuleDict({"attention": nn.ModuleDict({"q": nn.Linear(4, 6), "gate": nn.Linear(4, 3)})})
    stack = Stack("experts.up", 3, (6, 4), (4, 1), "experts.up", 1.0)
    assert find_routers(block, [stack]) == {"attention.gate"}


def test_a_layer_of_a_shared_expert_as_wide_as_there_are_experts_is_no_router() -> None:
    """As in Qwen3-Next, of 512 experts with a shared one of width 512."""
    block = _Mixture()
    block.mlp.gate = nn.Linear(4, 5)
    block.mlp.shared = nn.ModuleDict({"gate": nn.Linear(4, 5), "up": nn.Linear(4, 5), "down": nn.Linear(5, 4)})
    stack = Stack("mlp.experts.up", 5, (6, 4), (4, 1), "mlp.experts.up", 1.0)
    assert find_routers(block, [stack]) == {"mlp.gate", "mlp.shared_gate", "listed.router"}


def test_only_a_parameter_that_is_one_matrix_as_it_lies_is_whole() -> None:
    assert Linear.of("", nn.Linear(3, 2)).is_whole
    assert not Linear.of("", Conv1D(2, 3)).is_whole
    assert not Linear.of("", Conv1D(3, 3)).is_whole  # of the same shape, but transposed
    assert not Linear("", nn.Parameter(torch.zeros(2, 3, 4)), (3, 4), (4, 1)).is_whole
    assert not Linear("", nn.Parameter(torch.zeros(3, 4)), (3, 4), (4, 1), 12).is_whole
