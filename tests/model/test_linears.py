"""Every linear is seen as a matrix of outputs by inputs, however it is stored; other matrices are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from reprune.model.linears import Linear, find_linears, other_matrices

_CASES = {"nn.Linear": lambda: nn.Linear(4, 6), "Conv1D": lambda: Conv1D(6, 4)}  # of 4 inputs and 6 outputs
linears = pytest.mark.parametrize("module", [make() for make in _CASES.values()], ids=list(_CASES))


@linears
def test_the_matrix_times_the_inputs_is_the_output(module: nn.Module) -> None:
    linear = Linear("fc", module)
    X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert linear.shape == (6, 4) == tuple(linear.matrix().shape)
    bias = module.bias
    assert isinstance(bias, nn.Parameter)
    torch.testing.assert_close(X @ linear.matrix().T + bias, module(X))


@linears
def test_the_matrix_shares_its_memory_with_the_parameter(module: nn.Module) -> None:
    linear = Linear("fc", module)
    matrix = linear.matrix()
    assert not matrix.requires_grad
    matrix[2, 3] = 7.0
    assert linear.stored(linear.parameter.detach())[2, 3] == 7.0
    assert linear.parameter.requires_grad


@linears
def test_a_matrix_is_set_in_place(module: nn.Module) -> None:
    linear = Linear("fc", module)
    parameter, matrix = linear.parameter, torch.arange(24.0).reshape(6, 4)
    linear.set_(matrix)
    assert linear.parameter is parameter
    assert torch.equal(linear.matrix(), matrix)
    assert parameter.grad_fn is None
    with pytest.raises(RuntimeError):
        linear.set_(matrix.T)


@linears
def test_stored_and_seen_are_each_others_transpose(module: nn.Module) -> None:
    linear, matrix = Linear("fc", module), torch.arange(24.0).reshape(6, 4)
    assert linear.stored(matrix).shape == linear.parameter.shape
    assert torch.equal(linear.stored(linear.stored(matrix)), matrix)


class _Subclass(nn.Linear):
    """A linear with a name of its own, as remote code has them."""


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
    assert [linear.transposed for linear in found] == [True, False, False]
    assert find_linears(nn.LayerNorm(4)) == []


def test_matrices_that_no_linear_holds_are_named_with_their_shapes() -> None:
    assert other_matrices(_Block()) == {
        "experts": (2, 4, 4),
        "mixer": (4, 4),
        "table.weight": (3, 4),
        "convolution.weight": (4, 4, 3),
    }
    assert other_matrices(nn.Linear(4, 6)) == {}
