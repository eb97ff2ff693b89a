"""Experts that are modules in a list are pruned by the tokens that reach them, or by magnitude if none do."""

from __future__ import annotations

from copy import deepcopy
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from reprune.engine.pruning import linear_groups, prune_block_
from reprune.engine.window import PrunedBlock
from reprune.errors import UnsupportedModelError
from reprune.math.patterns import Unstructured
from reprune.math.ranks import ALONE
from reprune.math.wanda import Wanda
from reprune.model.block import Block, Call, Precision
from reprune.planning.sparsities import Sparsities

_CALL = Call((None,), {}, 0)


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.gate(x)) * self.up(x))


class _Mixture(nn.Module):
    """The first `first` tokens go to the first expert, the next `rest` to the second, none to the third."""

    def __init__(self, first: int, rest: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_Gated() for _ in range(3))
        self.first, self.rest = first, rest

    def forward(self, x: Tensor) -> Tensor:
        parts = x[:, : self.first], x[:, self.first : self.first + self.rest]
        return x + sum(expert(part).sum() for expert, part in zip(self.experts, parts, strict=False))


def _pruned(first: int, rest: int, sequential: bool, min_tokens: int = 2) -> tuple[PrunedBlock, list[str], int]:
    """The pruned block, the notes, and how often the samples were passed through it."""
    torch.manual_seed(0)
    return _prune(_Mixture(first, rest), sequential, min_tokens)


def _prune(module: nn.Module, sequential: bool, min_tokens: int = 2) -> tuple[PrunedBlock, list[str], int]:
    block = Block(0, module, torch.device("cpu"), Precision())
    batches = [(torch.randn(2, 3, 4), _CALL) for _ in range(2)]
    pruned = PrunedBlock(block, linear_groups(block, *batches[0], ()))
    inputs = Mock(return_value=batches)
    sparsities = Sparsities(Unstructured(0.5))
    notes = prune_block_(pruned, inputs, Wanda(), sparsities, sequential, {}, min_tokens, ALONE)
    return pruned, notes, inputs.call_count


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("min_tokens", [0, 2])
def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude(min_tokens: int, sequential: bool) -> None:
    pruned, notes, _ = _pruned(1, 2, sequential, min_tokens)
    tokens = [pruned.tokens[f"experts.{expert}.{part}"] for expert in range(3) for part in ("gate", "up", "down")]
    assert tokens == [4] * 3 + [8] * 3 + [0] * 3
    for linear in pruned.block.linears[6:]:
        weights = linear.matrix().abs()
        assert int((weights > 0).sum()) == 8
        assert bool((pruned.masks[linear.name] == (weights > 0)).all())
    few = "fewer than 2 tokens" if min_tokens else "no token"
    assert [note.split(" experts of ")[1].split(" and are ")[0] for note in notes] == [
        f"experts.*.{part} were reached by {few}" for part in ("gate", "down")
    ]


@pytest.mark.parametrize("sequential", [False, True])
def test_experts_none_of_which_any_token_is_seen_to_reach_are_not_pruned_blindly(sequential: bool) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no token was seen to reach the experts of experts\.\*\.gate"):
        _pruned(0, 0, sequential)


def test_all_experts_are_pruned_stage_by_stage_in_a_pass_each() -> None:
    pruned, _, passes = _pruned(1, 2, sequential=True)
    assert passes == 2
    weights = [linear.matrix().clone() for linear in pruned.block.linears]
    others, _, passes = _pruned(1, 2, sequential=False)
    assert passes == 1
    alike = [torch.equal(one, linear.matrix()) for one, linear in zip(weights, others.block.linears, strict=True)]
    assert [linear.name for same, linear in zip(alike, others.block.linears, strict=True) if not same] != []
    assert all(alike[place] for place in (0, 1, 3, 4, *range(6, 9))), "what comes first, and what none reaches"


def test_the_layers_of_an_expert_are_pruned_one_after_the_other_and_by_magnitude_where_no_token_comes() -> None:
    class Expert(nn.ModuleList):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.children():
                x = torch.relu(layer(x))
            return x

    mixture = _Mixture(1, 2)
    mixture.experts = nn.ModuleList(Expert(nn.Linear(4, 4) for _ in range(2)) for _ in range(3))
    pruned, notes, passes = _prune(mixture, sequential=True)
    assert passes == 2
    assert pruned.tokens == {
        f"experts.{expert}.{layer}": tokens for layer in range(2) for expert, tokens in enumerate((4, 8, 0))
    }
    assert [note.split(": ")[1].split(" were ")[0] for note in notes] == [
        f"1 of 3 experts of experts.*.{layer}" for layer in range(2)
    ]


class _Halves(nn.Module):
    """Two halves in sequence, which all tokens pass."""

    def __init__(self, halves: nn.ModuleList | nn.ModuleDict) -> None:
        super().__init__()
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        for half in self.halves.children():
            x = x + half(x)
        return x


def test_modules_in_a_list_that_all_tokens_pass_are_pruned_as_if_each_had_a_name() -> None:
    """As the halves of a LongCat-Flash block: the second reads the outputs of the first, pruned one."""
    torch.manual_seed(0)
    halves = {"a": _Gated(), "b": _Gated()}
    listed, named = nn.ModuleList(halves.values()), nn.ModuleDict(halves)
    found = []
    for module in (_Halves(listed), _Halves(named)):
        torch.manual_seed(1)
        pruned, notes, passes = _prune(deepcopy(module), sequential=True)
        assert (notes, passes, pruned.tokens) == ([], 4, {})
        found.append([linear.matrix() for linear in pruned.block.linears])
    assert all(map(torch.equal, *found))
