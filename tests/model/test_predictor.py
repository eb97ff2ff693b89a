"""A model's logits from the states of its last block, some tokens at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from reprune.model import predictor
from reprune.model.block import Precision
from reprune.model.decoder import Decoder
from reprune.model.predictor import Predictor
from reprune.model.whole import load_model
from tests import odd, tiny

from .conftest import streamed


@pytest.mark.parametrize("form", [*tiny.CONFIGS, *tiny.MIXTURES, *tiny.JOINED])
def test_logits_are_those_of_the_whole_model(form: str, tmp_path: Path) -> None:
    folder = tiny.save(form, tmp_path / "model")
    decoder = Decoder(folder)
    ids = torch.randint(0, tiny.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ((_, states),) = decoder.embed(ids, [slice(0, 2)])
        decoder.release()
        for index in range(len(decoder)):
            states = decoder.load(index).run(states, decoder.call(index, slice(0, 2)))
        expected = load_model(folder, torch.device("cpu"))(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(decoder.predictor()(states, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "quirk", ["beside, of tokens", "beside, of tokens, to the end", "beside, of tokens, passed on to the end"]
)
def test_they_are_made_of_what_the_last_block_returns_beside_the_states_too(
    quirk: odd.Quirk, tmp_path: Path, ids: Tensor
) -> None:
    decoder = Decoder(odd.save(quirk, tmp_path))
    decoder.check_predicts()
    with torch.no_grad():
        *_, states = streamed(decoder, ids, len(ids))
        decoder.release()
        found = decoder.predictor()(states, ids)
        torch.testing.assert_close(found, odd.build(quirk)(ids).logits, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_they_are_near_and_the_heads_matrix_is_held_so(llama: Path) -> None:
    ids = torch.randint(0, tiny.VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(0))
    exact = Decoder(llama)
    half = Decoder(llama, precision=Precision(torch.bfloat16))
    ((_, states),) = exact.embed(ids, [slice(0, 1)])
    with torch.no_grad():
        wanted, found = exact.predictor()(states, ids), half.predictor()(states, ids)
    assert found.dtype == torch.float32
    assert half.skeleton.model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert 0 < float((wanted - found).norm() / wanted.norm()) < 0.01


def of_words(words: int, mix: bool = False) -> Predictor:
    def run(states: Tensor, ids: Tensor) -> Tensor:
        del ids
        states = states.cumsum(1) if mix else states
        return states.mean(-1, keepdim=True).expand(*states.shape[:2], words) + torch.arange(words)

    return Predictor(run)


@pytest.mark.parametrize(("words", "expected"), [(4, 1), (16, 3), (32, 6), (64, 12), (1000, 36)])
def test_parts_are_no_more_logits_than_fit_and_cover_all_once(
    words: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "LOGITS", 192)
    states, ids = torch.randn(3, 12, 5), torch.zeros(3, 12, dtype=torch.int64)
    parts = list(of_words(words).parts(states, ids))
    assert len(parts) == expected
    seen = torch.zeros(3, 12)
    for part in parts:
        seen[part] += 1
        assert seen[part].numel() * words <= 192 or seen[part].numel() == 1
    assert bool((seen == 1).all())


def test_where_a_tokens_logits_are_not_its_own_all_of_a_sample_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predictor, "LOGITS", 64)
    states, ids = torch.randn(3, 12, 5) + 9, torch.zeros(3, 12, dtype=torch.int64)
    assert [part[1] for part in of_words(16, mix=True).parts(states, ids)] == [slice(None)] * 3
