"""A probe's tokens follow a fixed rule, and the record has the size of the first tokens' states."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reprune.engine.probe import TOKENS, Probe, rms


def test_tokens_are_the_same_for_all_and_spread_over_the_vocabulary() -> None:
    """Verifying a result generates them again, so the rule must not change."""
    ids = Probe(32000, 64).ids
    assert ids.tolist() == [[7919 * place % 32000 for place in range(64)]]
    assert len(set(ids[0].tolist())) == 64
    assert sorted(Probe(50, 50).ids[0].tolist()) == list(range(50))


@pytest.mark.parametrize("tokens", [8, 40])
def test_the_first_tokens_and_their_states_are_on_record_and_how_many_passed(tokens: int) -> None:
    probe, form = Probe(320, tokens), SimpleNamespace(states=lambda states: states.transpose(0, 1))
    probe.states = torch.randn(tokens, 1, 6, generator=torch.Generator().manual_seed(0))
    shown = min(tokens, TOKENS)
    own: Any = form
    found = probe.record(own)
    assert found.keys() == {"ids", "rms", "tokens"}
    assert (found["ids"], found["tokens"]) == (probe.ids[0, :32].tolist(), tokens)
    expected = [math.sqrt(sum(float(x) ** 2 for x in probe.states[place, 0]) / 6) for place in range(shown)]
    assert found["rms"] == pytest.approx(expected)
    assert TOKENS == 32


def test_of_a_token_with_several_streams_it_is_that_of_all_of_them() -> None:
    states = torch.tensor([[[1.0, 1.0], [3.0, 5.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert rms(states) == [3.0, 1.0]
    assert rms(300 * torch.ones(1, 4, dtype=torch.float16)) == [300.0], "squares are beyond half precision"
