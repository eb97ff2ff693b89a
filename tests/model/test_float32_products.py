"""Products that a model's own code asks for in float32 stay in float32 when all others are in half precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.model.block import Precision
from reprune.model.decoder import Decoder
from reprune.model.fitted_linears import FittedLinears
from reprune.model.float32_products import AskedInFloat32
from reprune.model.head import TokenLosses
from reprune.model.sampler import Sampler
from reprune.model.whole import load_model

from .. import tiny

_CPU = torch.device("cpu")
_HALF = Precision(torch.bfloat16)


class _Scores(nn.Module):
    """Casts inputs and weights as code of mixtures does."""

    def __init__(self, cast: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
        self._cast = cast

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(self._cast(states), self._cast(self.weight))


_STATES = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("cast", [Tensor.float, lambda one: one.type(torch.float32)])
def test_a_product_by_a_weight_that_is_cast_to_float32_is_in_float32(
    cast: Callable[[Tensor], Tensor], fitted: bool
) -> None:
    """Also beside another product of the same inputs, which are cast once for all that are fitted."""
    module, other = _Scores(cast), nn.Linear(8, 3)
    expected = module(_STATES)
    with _HALF.on(_CPU), FittedLinears() if fitted else nullcontext(), AskedInFloat32("cpu"):
        before, found, after = other(_STATES), module(_STATES), other(_STATES)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert before.dtype == after.dtype == torch.bfloat16 and torch.equal(before, after)
    (gradient,) = torch.autograd.grad(found.sum(), module.weight)
    torch.testing.assert_close(gradient, _STATES.sum((0, 1)).expand(4, 8))


@pytest.mark.parametrize("cast", [lambda one: one, lambda one: one.to(torch.float32)])
def test_other_products_are_in_half_precision(cast: Callable[[Tensor], Tensor]) -> None:
    """A weight that is cast to the dtype of the states is no sign: the states are float32 here."""
    with _HALF.on(_CPU), AskedInFloat32("cpu"):
        assert _Scores(cast)(_STATES).dtype == torch.bfloat16
        assert nn.functional.linear(_STATES.float(), _Scores(cast).weight).dtype == torch.bfloat16


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(("name", "dtype"), [("deepseek_v3", torch.float32), ("mixtral", torch.bfloat16)])
def test_a_block_routes_by_scores_of_the_precision_that_its_code_asks_for(
    name: str, dtype: torch.dtype, fitted: bool, tmp_path: Path
) -> None:
    decoder = Decoder(tiny.save(name, tmp_path), precision=_HALF)
    ((_, states),) = decoder.embed(torch.arange(3, 13)[None], [slice(0, 1)])
    block, scores = decoder.load(1), list[Tensor]()

    def saw(_: nn.Module, args: Any, outputs: Any) -> None:
        scores.append(outputs[0])

    block.module.get_submodule("mlp.gate").register_forward_hook(saw)
    block.module.requires_grad_(fitted)
    with torch.set_grad_enabled(fitted):
        outputs = block.run(states, decoder.call(1, slice(0, 1)))
    assert [one.dtype for one in scores] == [dtype]
    if fitted:
        outputs.square().sum().backward()
        assert block.module.get_parameter("mlp.gate.weight").grad is not None


@torch.no_grad()
@pytest.mark.parametrize(("name", "dtype"), [("deepseek_v3", torch.float32), ("mixtral", torch.bfloat16)])
def test_a_whole_model_routes_by_scores_of_that_precision_too(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, scores = load_model(tiny.save(name, tmp_path), _CPU, precision=_HALF), list[Tensor]()
    model.get_submodule("model.layers.1.mlp.gate").register_forward_hook(lambda _, args, out: scores.append(out[0]))
    TokenLosses(model, _HALF)(torch.arange(3, 13)[None])
    Sampler(model, _HALF).greedily(torch.arange(3, 13)[None], 2)
    assert {one.dtype for one in scores} == {dtype}
