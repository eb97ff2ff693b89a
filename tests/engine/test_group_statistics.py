"""Samples pass through a block no further, and no more often, than the pruner's statistics need."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reprune.engine import group_statistics
from reprune.engine.group_statistics import gathered, gathering
from reprune.errors import UnsupportedModelError
from reprune.math.magnitude import Magnitude
from reprune.math.pruner import Pruner
from reprune.math.ranks import ALONE
from reprune.math.sparsegpt import SparseGPT
from reprune.math.wanda import Wanda
from reprune.model.block import Block, Call, LinearGroup
from tests import tiny
from tests.engine.chain import made
from tests.engine.quick import prune, tensors


def _whole(block: Block, inputs: list[tuple[Tensor, Call]], groups: list[LinearGroup], pruner: Pruner[Any]) -> Any:
    known: dict[Any, Any] = {}
    with torch.no_grad(), gathering(block, groups, pruner, known, ALONE):
        for states, call in inputs:
            block.run(states, call)
    return next(iter(known.values()))


@pytest.mark.parametrize(("pruner", "what"), [(Wanda(), "sums"), (SparseGPT(), "matrix")])
def test_statistics_alone_end_a_pass_at_the_last_group(pruner: Pruner[Any], what: str) -> None:
    module, block, inputs, groups = made()
    found = gathered(block, lambda: inputs, groups, pruner, {}, ALONE)
    assert module.ran == ["first", "second"] * 3
    for one, other in zip(found, _whole(block, inputs, groups, pruner), strict=True):
        assert one.tokens == other.tokens == 18
        assert torch.equal(getattr(one, what), getattr(other, what))
    assert module.ran[6:] == ["first", "second", "third"] * 3


@pytest.mark.parametrize(("at_once", "counts"), [(4, [6]), (3, [5, 1]), (2, [4, 2]), (1, [2, 2, 1, 1])])
def test_of_experts_as_many_are_gathered_in_a_pass_as_fit(
    at_once: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only experts' statistics count."""
    monkeypatch.setattr(group_statistics, "AT_ONCE", at_once * SparseGPT().statistics(8, torch.device("cpu")).size(8))
    groups: list[Any] = [SimpleNamespace(columns=8, expert=expert) for expert in (False, True, True, False, True, True)]
    found = group_statistics.passes(groups, SparseGPT())
    assert [group for together in found for group in together] == groups
    assert [len(together) for together in found] == counts


def test_statistics_of_one_group_end_a_pass_there() -> None:
    module, block, inputs, groups = made()
    gathered(block, lambda: inputs, groups[1:2], Wanda(), {}, ALONE)
    assert module.ran == ["first"] * 3


def test_a_linear_that_runs_again_is_seen_to_the_end() -> None:
    module, block, inputs, groups = made(twice=True)
    (*_, last) = gathered(block, lambda: inputs, groups, Wanda(), {}, ALONE)
    assert module.ran == ["first", "second", "third", "third"] * 3
    assert last.tokens == 2 * 18


def test_a_pass_ends_when_each_group_was_seen_not_when_the_last_listed_was() -> None:
    """If a group's first linear stays dense, the next one may run only after other groups."""
    module, block, inputs, groups = made()
    found = gathered(block, lambda: inputs, [groups[2], groups[0]], Wanda(), {}, ALONE)
    assert module.ran == ["first", "second"] * 3
    assert [one.tokens for one in found] == [18, 18]


def test_a_linear_that_no_token_is_seen_to_reach_is_refused_not_pruned_blindly() -> None:
    _, block, inputs, groups = made()
    with pytest.raises(UnsupportedModelError, match="first: no token of the calibration samples was seen to reach it"):
        gathered(block, lambda: inputs[:0], groups, Wanda(), {}, ALONE)


@pytest.mark.parametrize(
    ("name", "include"),
    [
        ("llama", []),
        ("mixtral", []),
        ("xlnet", []),  # its matrices in einsum run first and are listed last
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
    monkeypatch.setattr(group_statistics, "gathering", lambda *given, alone: gathering(*given))
    prune(model, tmp_path / "whole", **options)
    early, whole = tensors(tmp_path / "early"), tensors(tmp_path / "whole")
    assert all(torch.equal(early[key], whole[key]) for key in whole)


def test_no_sample_is_passed_for_a_pruner_that_needs_no_data() -> None:
    module, block, inputs, groups = made()

    def none() -> list[tuple[Tensor, Call]]:
        raise AssertionError("samples were asked for")

    assert [found.tokens for found in gathered(block, none, groups, Magnitude(), {}, ALONE)] == [0, 0, 0]
    assert not module.ran
    known: dict[Any, Any] = {}
    with torch.no_grad(), gathering(block, groups, Magnitude(), known, ALONE):  # samples pass for another purpose
        block.run(*inputs[0])
    assert module.ran and not known
