"""Samples pass through a block no further, and no more often, than its pruner's statistics need."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reprune.engine import pruning
from reprune.engine.pruning import gathered, gathering, linear_groups, prune_block_
from reprune.engine.window import PrunedBlock
from reprune.errors import UnsupportedModelError
from reprune.math.checked import Checked
from reprune.math.magnitude import Magnitude
from reprune.math.patterns import Pattern, Unstructured
from reprune.math.pruner import Pruned, Pruner
from reprune.math.sparsegpt import SparseGPT
from reprune.math.statistics import Statistics
from reprune.math.wanda import Wanda
from reprune.model.block import Block, Call, LinearGroup, Precision
from reprune.planning.sparsities import Sparsities
from tests import tiny
from tests.engine.quick import QUICK, prune, tensors

_CALL = Call((None,), {}, 0)


class _Chain(torch.nn.Module):
    """Three linears in turn, of which one may run twice; counts how often each has been run to its end."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(4, 4) for _ in range(3))
        self.twice = twice
        self.ran: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "third", *["third"] * self.twice):
            x = self.get_submodule(name)(torch.tanh(x))
            self.ran.append(name)
        return x


def _made(twice: bool = False) -> tuple[_Chain, Block, list[tuple[Tensor, Call]], list[LinearGroup]]:
    torch.manual_seed(0)
    module = _Chain(twice)
    block = Block(0, module, torch.device("cpu"), Precision())
    inputs = [(torch.randn(2, 3, 4), _CALL) for _ in range(3)]
    groups = linear_groups(block, *inputs[0], ())
    module.ran.clear()
    return module, block, inputs, groups


def _whole(block: Block, inputs: list[tuple[Tensor, Call]], groups: list[LinearGroup], pruner: Pruner[Any]) -> Any:
    known: dict[Any, Any] = {}
    with torch.no_grad(), gathering(block, groups, pruner, known):
        for states, call in inputs:
            block.run(states, call)
    return next(iter(known.values()))


@pytest.mark.parametrize(("pruner", "what"), [(Wanda(), "sums"), (SparseGPT(), "matrix")])
def test_statistics_alone_end_a_pass_at_the_last_group(pruner: Pruner[Any], what: str) -> None:
    module, block, inputs, groups = _made()
    found = gathered(block, lambda: inputs, groups, pruner, {})
    assert module.ran == ["first", "second"] * 3
    for one, other in zip(found, _whole(block, inputs, groups, pruner), strict=True):
        assert one.tokens == other.tokens == 18
        assert torch.equal(getattr(one, what), getattr(other, what))
    assert module.ran[6:] == ["first", "second", "third"] * 3


def test_statistics_of_one_group_end_a_pass_there() -> None:
    module, block, inputs, groups = _made()
    gathered(block, lambda: inputs, groups[1:2], Wanda(), {})
    assert module.ran == ["first"] * 3


def test_a_linear_that_runs_again_is_seen_to_the_end() -> None:
    module, block, inputs, groups = _made(twice=True)
    (*_, last) = gathered(block, lambda: inputs, groups, Wanda(), {})
    assert module.ran == ["first", "second", "third", "third"] * 3
    assert last.tokens == 2 * 18


def test_a_pass_ends_when_each_group_was_seen_not_when_the_last_listed_was() -> None:
    """Of a group whose first linear stays dense, the next may run after other groups."""
    module, block, inputs, groups = _made()
    found = gathered(block, lambda: inputs, [groups[2], groups[0]], Wanda(), {})
    assert module.ran == ["first", "second"] * 3
    assert [one.tokens for one in found] == [18, 18]


def test_a_linear_that_no_token_is_seen_to_reach_is_refused_not_pruned_blindly() -> None:
    _, block, inputs, groups = _made()
    with pytest.raises(UnsupportedModelError, match="first: no token of the calibration samples was seen to reach it"):
        gathered(block, lambda: inputs[:0], groups, Wanda(), {})


@pytest.mark.parametrize(
    ("name", "include"),
    [
        ("llama", []),
        ("mixtral", []),
        ("xlnet", []),  # whose matrices in einsum run first and are listed last
        ("cohere", ["o_proj", "up_proj"]),  # attention and MLP read one tensor: up_proj, of the first group, runs last
        ("gptj", ["out_proj", "fc_in"]),
    ],
)
def test_a_pass_that_ends_early_gives_the_same_model(
    name: str, include: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.save(name, tmp_path / "model")
    options = {"pruner": "wanda", "reconstruct": "BR+GP", "include": include or None}
    prune(model, tmp_path / "early", **options)
    monkeypatch.setattr(pruning, "gathering", lambda *given, alone: gathering(*given))
    prune(model, tmp_path / "whole", **options)
    early, whole = tensors(tmp_path / "early"), tensors(tmp_path / "whole")
    assert all(torch.equal(early[key], whole[key]) for key in whole)


def test_an_expert_that_just_enough_tokens_reach_is_pruned_as_the_others_and_the_last_may_have_none() -> None:
    """Statistics that are at hand say that the two columns of the smallest weights matter most."""
    _, block, _, _ = _made()
    groups = [LinearGroup((linear,), False, expert=True, stage="mlp") for linear in block.linears]
    known: list[Any] = []
    for tokens in (4, 3, 0):
        known.append(Wanda().statistics(4, torch.device("cpu")))
        known[-1].update(torch.tensor([[1e3, 1e3, 1.0, 1.0]]).expand(tokens, 4))
    for linear in block.linears:
        linear.set_(torch.tensor([[0.1, 0.2, 1.0, 2.0]]).expand(4, 4))
    pruned = PrunedBlock(block, groups)
    pruner, sparsities = Wanda(), Sparsities(Unstructured(0.5))
    statistics = {pruning._key(groups, pruner): known}
    notes = prune_block_(pruned, list, pruner, sparsities, False, statistics, min_tokens=4)
    by_wanda, by_magnitude = [True, True, False, False], [False, False, True, True]
    assert [mask[0].tolist() for mask in pruned.masks.values()] == [by_wanda, by_magnitude, by_magnitude]
    assert pruned.tokens == {"first": 4, "second": 3, "third": 0}
    assert notes == [
        "block 0: 2 of 3 experts of mlp were reached by fewer than 4 tokens and are pruned by magnitude: "
        "second (3), third (0)"
    ]


def test_matrices_of_one_group_may_have_patterns_of_their_own() -> None:
    _, block, inputs, _ = _made()
    pruned = PrunedBlock(block, [LinearGroup(tuple(block.linears))])
    sparsities = Sparsities(Unstructured(0.5), {"second": Unstructured(0.25)})
    prune_block_(pruned, lambda: inputs, Magnitude(), sparsities, False)
    assert [int(mask.sum()) for mask in pruned.masks.values()] == [8, 12, 8]


class _Sparser(Pruner[Statistics]):
    """Prunes by magnitude, and of the first of a group's matrices three quarters whatever it is told."""

    data_free = True

    def statistics(self, columns: int, device: torch.device) -> Statistics:
        return Statistics(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern) -> list[Pruned]:
        patterns = [Unstructured(0.75), *[pattern] * (len(weights) - 1)]
        return [Magnitude().prune([one], statistics, own)[0] for one, own in zip(weights, patterns, strict=True)]


@pytest.mark.parametrize(("pattern", "asked"), [(Unstructured(0.5), "50.0%"), (Unstructured(0.25), "25.0%")])
def test_a_package_s_pruner_that_prunes_another_share_is_told_once_a_block(pattern: Pattern, asked: str) -> None:
    def notes(groups: int, pattern: Pattern, pruner: Pruner[Any]) -> list[str]:
        _, block, inputs, _ = _made()
        together = [block.linears] if groups == 1 else [[linear] for linear in block.linears]
        pruned = PrunedBlock(block, [LinearGroup(tuple(linears)) for linears in together])
        return prune_block_(pruned, lambda: inputs, pruner, Sparsities(pattern), False)

    sparser = Checked("mine", _Sparser())
    assert notes(1, pattern, Checked("mine", Magnitude())) == notes(3, Unstructured(0.75), sparser) == []
    for groups, count in ((1, 1), (3, 3)):
        assert notes(groups, pattern, sparser) == [
            f"block 0: pruner mine pruned another share than was asked for of {count} of its 3 matrices, as of first "
            f"75.0% in place of {asked}"
        ]


def test_no_sample_is_passed_for_a_pruner_that_needs_no_data() -> None:
    module, block, inputs, groups = _made()

    def none() -> list[tuple[Tensor, Call]]:
        raise AssertionError("samples were asked for")

    assert [found.tokens for found in gathered(block, none, groups, Magnitude(), {})] == [0, 0, 0]
    assert not module.ran
    known: dict[Any, Any] = {}
    with torch.no_grad(), gathering(block, groups, Magnitude(), known):  # where samples pass for another purpose
        block.run(*inputs[0])
    assert module.ran and not known


@pytest.mark.parametrize(("name", "samples"), [("llama", 1), ("mixtral", QUICK["batch_size"])])
def test_groups_are_found_by_one_sample_or_where_tokens_are_routed_by_a_batch(
    name: str, samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counting(block: Block, states: Tensor, call: Call, kept_dense: Collection[str]) -> list[LinearGroup]:
        sizes.append(len(states))
        return linear_groups(block, states, call, kept_dense)

    monkeypatch.setattr(pruning, "linear_groups", counting)
    record = prune(tiny.save(name, tmp_path / "model"), tmp_path / "out", pruner="wanda", reconstruct="LR")
    assert sizes == [samples] * len(record["blocks"])
