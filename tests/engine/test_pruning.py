"""A block is pruned group by group, each matrix by its pattern, and experts that few tokens reach by magnitude."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reprune.engine import group_statistics, pruning
from reprune.engine.pruning import linear_groups, prune_block_
from reprune.engine.window import PrunedBlock
from reprune.math.checked import Checked
from reprune.math.magnitude import Magnitude
from reprune.math.patterns import Pattern, Unstructured
from reprune.math.pruner import Pruned, Pruner
from reprune.math.ranks import ALONE
from reprune.math.statistics import Statistics
from reprune.math.wanda import Wanda
from reprune.model.block import Block, Call, LinearGroup
from reprune.planning.sparsities import Sparsities
from tests import tiny
from tests.engine.chain import made
from tests.engine.quick import QUICK, prune


@pytest.mark.parametrize(("named", "few"), [(8, "second (3), third (0)"), (1, "second (3) and 1 more")])
def test_an_expert_that_just_enough_tokens_reach_is_pruned_as_the_others_and_the_last_may_have_none(
    named: int, few: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The given statistics say that the two columns with the smallest weights matter most."""
    monkeypatch.setattr(pruning, "_NAMED", named)
    _, block, _, _ = made()
    groups = [LinearGroup((linear,), False, expert=True, stage="mlp") for linear in block.linears]
    known: list[Any] = []
    for tokens in (4, 3, 0):
        known.append(Wanda().statistics(4, torch.device("cpu")))
        known[-1].update(torch.tensor([[1e3, 1e3, 1.0, 1.0]]).expand(tokens, 4))
    for linear in block.linears:
        linear.set_(torch.tensor([[0.1, 0.2, 1.0, 2.0]]).expand(4, 4))
    pruned = PrunedBlock(block, groups)
    pruner, sparsities = Wanda(), Sparsities(Unstructured(0.5))
    statistics = {group_statistics._key(groups, pruner): known}
    notes = prune_block_(pruned, list, pruner, sparsities, False, statistics, 4, ALONE)
    by_wanda, by_magnitude = [True, True, False, False], [False, False, True, True]
    assert [mask[0].tolist() for mask in pruned.masks.values()] == [by_wanda, by_magnitude, by_magnitude]
    assert pruned.tokens == {"first": 4, "second": 3, "third": 0}
    assert notes == [
        f"block 0: 2 of 3 experts of mlp were reached by fewer than 4 tokens and are pruned by magnitude: {few}"
    ]


def test_matrices_of_one_group_may_have_patterns_of_their_own() -> None:
    _, block, inputs, _ = made()
    pruned = PrunedBlock(block, [LinearGroup(tuple(block.linears))])
    sparsities = Sparsities(Unstructured(0.5), {"second": Unstructured(0.25)})
    prune_block_(pruned, lambda: inputs, Magnitude(), sparsities, False, {}, 0, ALONE)
    assert [int(mask.sum()) for mask in pruned.masks.values()] == [8, 12, 8]


class _Sparser(Pruner[Statistics]):
    """Prunes by magnitude, but three quarters of a group's first matrix, whatever the pattern."""

    data_free = True

    def statistics(self, columns: int, device: torch.device) -> Statistics:
        return Statistics(columns, device)

    def _prune(self, weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern) -> list[Pruned]:
        patterns = [Unstructured(0.75), *[pattern] * (len(weights) - 1)]
        return [Magnitude().prune([one], statistics, own)[0] for one, own in zip(weights, patterns, strict=True)]


@pytest.mark.parametrize(("pattern", "asked"), [(Unstructured(0.5), "50.0%"), (Unstructured(0.25), "25.0%")])
def test_a_package_s_pruner_that_prunes_another_share_is_told_once_a_block(pattern: Pattern, asked: str) -> None:
    def notes(groups: int, pattern: Pattern, pruner: Pruner[Any]) -> list[str]:
        _, block, inputs, _ = made()
        together = [block.linears] if groups == 1 else [[linear] for linear in block.linears]
        pruned = PrunedBlock(block, [LinearGroup(tuple(linears)) for linears in together])
        return prune_block_(pruned, lambda: inputs, pruner, Sparsities(pattern), False, {}, 0, ALONE)

    sparser = Checked("mine", _Sparser())
    assert notes(1, pattern, Checked("mine", Magnitude())) == notes(3, Unstructured(0.75), sparser) == []
    for groups, count in ((1, 1), (3, 3)):
        assert notes(groups, pattern, sparser) == [
            f"block 0: pruner mine did not prune the share asked for in {count} of 3 matrices, for example 75.0% of "
            f"first instead of {asked}"
        ]


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
