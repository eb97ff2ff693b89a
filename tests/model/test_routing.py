"""A block's choices by `topk` are recorded in order, and repeated with other scores for any samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from reprune.model.routing import Routes

SAMPLES, TOKENS, EXPERTS = 5, 3, 8


def _scores(seed: int, samples: int = SAMPLES) -> Tensor:
    return torch.randn(samples, TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed))


_WAYS: list[Callable[[Tensor], Any]] = [
    lambda scores: torch.topk(scores, 2, -1),
    lambda scores: torch.topk(scores, k=2),
    lambda scores: torch.topk(input=scores, k=2, dim=2),
    lambda scores: scores.topk(2, dim=-1, sorted=False),
    lambda scores: torch.topk(scores.flatten(0, 1), 2),
    lambda scores: torch.topk(scores.flatten(0, 1), 2, 1),
    lambda scores: scores.flatten(0, 1).topk(2, dim=1),
]


@pytest.mark.parametrize("way", _WAYS)
def test_the_scores_are_the_models_own_and_the_choices_those_recorded(way: Callable[[Tensor], Any]) -> None:
    routes, recorded = Routes(), _scores(0)
    for first in range(0, SAMPLES, 2):
        batch = recorded[first : first + 2]
        with routes.recording(len(batch), TOKENS):
            way(batch)
    some = torch.tensor([4, 0, 1])
    for _ in range(2):
        with routes.repeating(some):
            found = way(_scores(1)[some])
        chosen = way(recorded[some]).indices
        assert torch.equal(found.indices, chosen)
        assert torch.equal(found.values, _scores(1)[some].view(*chosen.shape[:-1], EXPERTS).gather(-1, chosen))


def test_several_choices_are_repeated_in_their_order() -> None:
    def chosen(scores: Tensor) -> list[Tensor]:
        groups = scores.view(-1, TOKENS, 4, 2).sum(-1)
        return [groups.topk(1).indices, scores.topk(3).indices, (-scores).topk(2).indices]

    routes = Routes()
    with routes.recording(SAMPLES, TOKENS):
        expected = chosen(_scores(0))
    some = torch.tensor([2, 3])
    with routes.repeating(some):
        found = chosen(_scores(1)[some])
    assert all(torch.equal(one, other[some]) for one, other in zip(found, expected, strict=True))


def test_choices_that_are_not_made_for_all_tokens_are_left_to_the_model() -> None:
    """As by the indexer of Qwen4, which chooses keys for one token after the other."""

    def chosen(scores: Tensor) -> list[Tensor]:
        by_token = [row.topk(2).indices for row in scores.flatten(0, 1)]
        return [*by_token, scores.flatten(0, 1).mT.topk(1).indices, scores.topk(3).indices]

    routes = Routes()
    with routes.recording(SAMPLES, TOKENS):
        expected = chosen(_scores(0))
    some = torch.tensor([2, 3])
    with routes.repeating(some):
        *left, found = chosen(_scores(1)[some])
    assert torch.equal(found, expected[-1][some])
    assert all(torch.equal(one, other) for one, other in zip(left, chosen(_scores(1)[some]), strict=False))
