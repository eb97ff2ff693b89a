"""A sketch tells how much of the samples a text contains, and reveals nothing of them."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from reprune.planning.overlap import overlap, sketch


def _ids(samples: int, tokens: int, seed: int, vocabulary: int = 50_000) -> Tensor:
    return torch.randint(vocabulary, (samples, tokens), generator=torch.Generator().manual_seed(seed))


def test_the_samples_themselves_overlap_wholly_and_others_not_at_all() -> None:
    ids = _ids(32, 256, 0)
    known = json.loads(json.dumps(sketch(ids)))
    assert len(known["hashes"]) == 256
    assert overlap(known, ids) == 1.0
    assert overlap(known, _ids(100, 256, 1)) == 0.0


@pytest.mark.parametrize("share", [0.125, 0.5])
def test_the_share_is_about_that_of_the_passages(share: float) -> None:
    ids = _ids(64, 256, 0)
    known = sketch(ids)
    text = torch.cat([ids[: int(64 * share)], _ids(40, 256, 1)])
    assert overlap(known, text) == pytest.approx(share, abs=0.1)  # three standard deviations


def test_a_passage_is_found_wherever_it_stands() -> None:
    ids = _ids(8, 64, 0)
    text = torch.cat([_ids(8, 37, 1), ids, _ids(8, 100, 2)], dim=1)
    assert overlap(sketch(ids), text) == 1.0


def test_the_twin_counts_passages_in_sets() -> None:
    ids, text = _ids(3, 48, 0, vocabulary=3), _ids(3, 48, 1, vocabulary=3)
    text[1, 5:35] = ids[2, 3:33]

    def passages(rows: Tensor) -> set[tuple[int, ...]]:
        return {tuple(row[start : start + 24].tolist()) for row in rows for start in range(len(row) - 23)}

    one, other = passages(ids), passages(text)
    assert overlap(sketch(ids), text) == pytest.approx(len(one & other) / len(one))


def test_what_an_earlier_run_has_on_record_is_found() -> None:
    ids = 1000 * torch.arange(48)[None]
    passages = [range(1000 * start, 1000 * (start + 24), 1000) for start in range(25)]
    known = sketch(ids)
    assert known == {"tokens": 24, "hashes": sorted(f"{_hash(passage):016x}" for passage in passages)}
    assert known["hashes"][0] == "012dea000f36312a"


def _hash(tokens: Iterable[int]) -> int:
    """The twin of a passage's hash, in Python's unbounded integers."""
    value = 0
    for token in tokens:
        value = (value * 0x9E3779B97F4A7C15 + token + 1) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor % 2**64
    return value ^ value >> 31


def test_a_text_of_one_passage_may_hold_it_and_a_shorter_one_holds_none() -> None:
    known = sketch(_ids(1, 47, 0))  # 24 passages
    assert overlap(known, _ids(1, 47, 0)[:, 23:]) == pytest.approx(1 / 24)
    assert overlap(known, _ids(1, 47, 0)[:, 24:]) == 0.0
    assert overlap({"tokens": 24, "hashes": []}, _ids(1, 47, 0)) == 0.0


def test_the_order_of_tokens_counts() -> None:
    ids = _ids(4, 64, 0)
    assert overlap(sketch(ids), ids.flip(1)) == 0.0


@pytest.mark.parametrize("tokens", [1, 23, 24])
def test_short_samples_are_compared_by_halves(tokens: int) -> None:
    ids = _ids(4, tokens, 0)
    assert overlap(sketch(ids), torch.cat([_ids(4, 30, 1), ids], dim=1)) == 1.0
    assert overlap(sketch(_ids(4, 64, 3)), ids) == 0.0
