"""Samples have exactly the length asked for, begin as the tokenizer begins a text, and use no text twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from reprune.errors import InputError
from reprune.planning import sources, tokens
from reprune.planning.documents import Documents, text_sha256
from reprune.planning.samples import draw_samples
from reprune.planning.sources import Source, SourceSpec, Split, load_documents
from reprune.planning.tokens import beginning, encode

FEW = settings(max_examples=25, deadline=None)
A, B = SourceSpec("a"), SourceSpec("b")


@dataclass(frozen=True)
class _Given(Source):
    """Texts made by a test."""

    texts: tuple[str, ...]
    running: bool = False

    def load(self, split: Split) -> Documents:
        assert split == "train"
        return Documents("given", self.texts, joiner=" | ", running=self.running)


class _Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *texts: str, **settings: Any) -> Any:
        self.calls += 1
        return self._tokenizer(*texts, **settings)


@contextmanager
def _sources(**given: Source) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, source in given.items():
            patch.setitem(sources.KNOWN, name, source)
        yield


def _texts(*words: int) -> tuple[str, ...]:
    """Documents with these numbers of words; no word occurs twice."""
    return tuple(" ".join(f"{i:03}x{j:04}" for j in range(count)) for i, count in enumerate(words))


def _bodies(tokenizer: PreTrainedTokenizerBase, samples: Tensor) -> list[str]:
    """The text of each sample, after checking how it begins."""
    prefix = beginning(tokenizer)
    assert samples.dtype == torch.int64
    assert (samples[:, : len(prefix)] == torch.tensor(prefix, dtype=torch.int64)).all()
    return [str(tokenizer.decode(row)) for row in samples[:, len(prefix) :].tolist()]


@FEW
@given(
    words=st.lists(st.integers(10, 40), min_size=14, max_size=30),
    count=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_each_long_document_gives_one_span_in_one_role(
    tokenizer: PreTrainedTokenizerBase, words: list[int], count: int, seed: int
) -> None:
    texts = _texts(*words)
    with _sources(a=_Given(texts)):
        drawn = draw_samples(tokenizer, [A], [], count, 16, seed)
    assert drawn.calibration.shape == (count, 16)
    assert drawn.heldout.shape == (-(-count // 8), 16)
    bodies = _bodies(tokenizer, torch.cat([drawn.calibration, drawn.heldout]))
    homes = [[i for i, text in enumerate(texts) if body in text] for body in bodies]
    assert all(len(home) == 1 for home in homes)  # a span is within one document
    assert len({home[0] for home in homes}) == len(homes)
    order = [home[0] for home in homes]
    for source, used in zip(drawn.sources, (order[:count], order[count:]), strict=True):
        assert source.sha256 == text_sha256(Documents("", texts, joiner=" | "), used)


def test_documents_that_are_hardly_ever_long_enough_are_joined_and_not_all_looked_at(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    long, short = _texts(60), ("a short row",) * 9000
    with _sources(a=_Given(short + long * 3), b=_Given(short[:500] + long * 25)):
        asked = _Counting(tokenizer)
        rare = draw_samples(cast("PreTrainedTokenizerBase", asked), [A], [], 3, 32, 0)
        assert asked.calls < 5000
        assert any(" | " in body for body in _bodies(tokenizer, rare.calibration))
        often = draw_samples(tokenizer, [B], [], 8, 32, 0)
    assert not any(" | " in body for body in _bodies(tokenizer, often.calibration))


@FEW
@given(
    words=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    running=st.booleans(),
    count=st.integers(1, 20),
    seqlen=st.integers(2, 40),
    seed=st.integers(0, 9),
)
def test_spans_of_a_packed_text_do_not_overlap_and_its_shortness_is_told(
    tokenizer: PreTrainedTokenizerBase, words: list[int], running: bool, count: int, seqlen: int, seed: int
) -> None:
    texts = (*_texts(*words), " end")
    with _sources(a=_Given(texts, running=running)):
        try:
            drawn = draw_samples(tokenizer, [A], [A], count, seqlen, seed)
        except InputError as error:
            _check_remedies(tokenizer, str(error), count, seqlen, seed)
            return
    bodies = _bodies(tokenizer, torch.cat([drawn.calibration, drawn.heldout]))
    assert len(bodies) == count + -(-count // 8)
    if running and all(len(body) > 12 for body in bodies):  # long enough to occur only once
        joined = " | ".join(texts)
        spans = sorted((joined.index(body), joined.index(body) + len(body)) for body in bodies)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def _check_remedies(tokenizer: PreTrainedTokenizerBase, message: str, count: int, seqlen: int, seed: int) -> None:
    """The largest settings that the message names work, and one more does not."""
    found = dict(re.findall(r"--(samples|seqlen) (\d+)", message))
    for name, value in found.items():
        for more, works in ((0, True), (1, False)):
            asked = {"samples": count, "seqlen": seqlen} | {name: int(value) + more}
            try:
                draw_samples(tokenizer, [A], [A], asked["samples"], asked["seqlen"], seed)
            except InputError:
                assert not works
            else:
                assert works


@FEW
@given(seed=st.integers(0, 99))
def test_the_same_seed_gives_the_same_samples_and_another_seed_others(
    with_bos: PreTrainedTokenizerBase, seed: int
) -> None:
    documents, packed = _Given(_texts(*[30] * 40)), _Given(_texts(2000), running=True)
    with _sources(a=documents, b=packed):
        first = draw_samples(with_bos, [A, B], [], 16, 12, seed)
        again = draw_samples(with_bos, [A, B], [], 16, 12, seed)
        other = draw_samples(with_bos, [A, B], [], 16, 12, seed + 1)
        alone = draw_samples(with_bos, [A], [], 8, 12, seed)
    assert torch.equal(first.calibration, again.calibration)
    assert torch.equal(first.heldout, again.heldout)
    assert (first.sha256, first.sources) == (again.sha256, again.sources)
    assert other.sha256 != first.sha256
    assert torch.equal(alone.calibration, first.calibration[:8])  # sources do not affect each other


def test_a_span_may_begin_anywhere_in_its_document(without_bos: PreTrainedTokenizerBase) -> None:
    texts = _texts(*[12] * 72)
    known = [encode(without_bos, text).tolist() for text in texts]
    width = min(map(len, known)) - 2
    with _sources(a=_Given(texts)):
        rows = draw_samples(without_bos, [A], [], 64, width, 0).calibration.tolist()
    starts = [start for row in rows for own in known for start in range(len(own)) if own[start : start + width] == row]
    assert len(starts) == 64
    assert all(starts.count(start) > 8 for start in range(3))  # each is expected in a third of 64


@pytest.mark.parametrize("lines", [True, False], ids=["lines", "one document"])
def test_a_span_may_be_of_any_part_of_a_running_text(
    without_bos: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, lines: bool
) -> None:
    monkeypatch.setattr(tokens, "PIECE", 100)
    texts = _texts(*[4] * 100) if lines else ("\n".join(_texts(*[4] * 100)),)
    whole = encode(without_bos, " | ".join(texts)).tolist()
    with _sources(a=_Given(texts, running=lines)):
        drawn = [draw_samples(without_bos, [A], [], 1, 16, seed) for seed in range(64)]
    rows = [row for one in drawn for row in (one.calibration[0].tolist(), one.heldout[0].tolist())]
    starts = [next(start for start in range(len(whole)) if whole[start : start + 16] == row) for row in rows]
    quarters = [4 * start // len(whole) for start in starts]
    assert all(20 < quarters.count(quarter) < 44 for quarter in range(4))
    assert {start % 16 for start in starts} == {*range(16)}  # the offset is random


def test_a_text_of_just_the_tokens_is_long_enough(without_bos: PreTrainedTokenizerBase) -> None:
    whole = next(ids for words in range(20, 30) if len(ids := encode(without_bos, _texts(words)[0]).tolist()) % 2 == 0)
    with _sources(a=_Given((str(without_bos.decode(whole)),))):
        drawn = draw_samples(without_bos, [A], [], 1, len(whole) // 2, 0)
    rows = [drawn.calibration[0].tolist(), drawn.heldout[0].tolist()]
    assert whole in (rows[0] + rows[1], rows[1] + rows[0])


def test_of_many_short_texts_a_random_part_is_read(
    without_bos: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "PIECE", 100)
    texts = _texts(*[3] * 300)
    with _sources(a=_Given(texts)):
        drawn = draw_samples(without_bos, [SourceSpec("a", 2)], [], 1, 64, 5)
    order = np.random.default_rng((5, 0, 0)).permutation(300).tolist()
    sizes = np.cumsum([len(encode(without_bos, f" | {texts[index]}")) for index in order])
    enough = int((sizes < 4 * 3 * 64).sum())  # texts with four times the tokens drawn, held-out samples included
    read = {text_sha256(Documents("", texts, joiner=" | "), order[: enough + more]) for more in range(6)}
    assert enough < 200
    assert len({one.sha256 for one in drawn.sources} & read) == 1


@pytest.mark.parametrize("bos", [False, True])  # whether the texts spell BOS out, as `decode` does by default
def test_tokens_of_generated_texts_are_used_as_they_were_generated(
    bos: bool, with_bos: PreTrainedTokenizerBase, write_jsonl: Callable[..., Path]
) -> None:
    ids = [[0, *range(40 * i + 9, 40 * i + 15)] for i in range(9)]
    texts = [str(with_bos.decode(row, skip_special_tokens=not bos)) for row in ids]
    tokenized = [encode(with_bos, text).tolist() for text in texts]
    assert tokenized != [row if bos else row[1:] for row in ids]
    path = write_jsonl(*({"text": text, "token_ids": row} for text, row in zip(texts, ids, strict=True)))
    for name in (str(path), f"{path}:text"):
        drawn = draw_samples(with_bos, [SourceSpec(name)], [], 8, 7, 0)
        assert sorted(torch.cat([drawn.calibration, drawn.heldout]).tolist()) == ids
        assert ([one.foreign_tokens for one in drawn.sources], drawn.notes) == ([0, 0], [])


@pytest.mark.parametrize("seqlen", [8, 400])  # one span per text, or spans of the joined texts
def test_numbers_that_are_no_tokens_of_the_text_are_left_aside_with_a_note(
    with_bos: PreTrainedTokenizerBase, write_jsonl: Callable[..., Path], seqlen: int
) -> None:
    texts = _texts(*[40] * 18)
    plain = draw_samples(with_bos, [SourceSpec(str(write_jsonl(*texts)))], [], 8, seqlen, 0)
    numbers: list[list[int]] = [[7] * 70, [-1], [2**40], [399, 12345]]
    rows = ({"text": text, "ids": numbers[i % 4], "note": "a"} for i, text in enumerate(texts))
    drawn = draw_samples(with_bos, [SourceSpec(str(write_jsonl(*rows, name="of a user.jsonl")))], [], 8, seqlen, 0)
    assert torch.equal(drawn.calibration, plain.calibration)
    assert torch.equal(drawn.heldout, plain.heldout)
    assert drawn.sources[0].foreign_tokens >= 8
    assert [note.partition(":")[0] for note in drawn.notes] == ["source 'of a user.jsonl'"]


def test_tokens_of_a_server_may_end_before_its_text(
    with_bos: PreTrainedTokenizerBase, write_jsonl: Callable[..., Path]
) -> None:
    texts = _texts(*[40] * 9)
    path = write_jsonl(*({"text": text, "token_ids": encode(with_bos, text)[:7].tolist()} for text in texts))
    drawn = draw_samples(with_bos, [SourceSpec(str(path))], [], 8, 8, 0)
    rows = torch.cat([drawn.calibration, drawn.heldout])[:, 1:].tolist()
    assert sorted(rows) == sorted(encode(with_bos, text)[:7].tolist() for text in texts)


def test_of_a_column_that_is_named_the_words_are_tokenized(
    with_bos: PreTrainedTokenizerBase, write_jsonl: Callable[..., Path]
) -> None:
    path = write_jsonl({"text": "a", "body": "the end of the statement", "token_ids": encode(with_bos, "a").tolist()})
    drawn = draw_samples(with_bos, [SourceSpec(f"{path}:body", 1)], [SourceSpec("manual")], 1, 4, 0)
    assert with_bos.decode(drawn.calibration[0, 1:].tolist()) in "the end of the statement"
    assert drawn.notes == []


def test_too_short_a_text_of_its_own_count_says_which_count_would_do(
    without_bos: PreTrainedTokenizerBase,
) -> None:
    with _sources(a=_Given(("a" * 3,)), b=_Given(_texts(100))):
        tokens = len(encode(without_bos, _texts(100)[0]))
        message = rf"expected 1,130 tokens for 113 samples of 10 .* has {tokens}; .* a count of (\d+) or --seqlen"
        with pytest.raises(InputError, match=message) as raised:
            draw_samples(without_bos, [SourceSpec("b", 100)], [], 256, 10, 0)
        found = re.search(r"a count of (\d+)", str(raised.value))
        assert found is not None
        draw_samples(without_bos, [SourceSpec("b", int(found[1]))], [], 256, 10, 0)
        with pytest.raises(InputError, match=r"give a longer text$"):
            draw_samples(without_bos, [A], [], 256, 10, 0)


@pytest.mark.parametrize(
    ("words", "calibration", "heldout", "remedy"),
    [
        (4, [A, B], [], "--samples 4 or --seqlen 3"),  # two from each source, and one held out
        (1, [A, B], [], None),
        (40, [SourceSpec("a", 9)], [SourceSpec("a", 30)], "a count of 5 or --seqlen 9"),
        (40, [A], [SourceSpec("a", 30)], "--samples 5 or --seqlen 7"),
        (4, [B], [SourceSpec("a", 9)], "a count of 3 or --seqlen 3"),
        (40, [SourceSpec("a", 6)], [SourceSpec("a", 30)], "a count of 5 or --seqlen 9"),  # one less than asked for
        (40, [SourceSpec("a", 2)], [SourceSpec("a", 34)], "a count of 1 or --seqlen 9"),  # the least possible
    ],
)
def test_too_short_a_text_of_several_says_what_would_do(
    without_bos: PreTrainedTokenizerBase,
    words: int,
    calibration: list[SourceSpec],
    heldout: list[SourceSpec],
    remedy: str | None,
) -> None:
    message = rf"give a longer text{'' if remedy is None else f', or at most {remedy}'}$"
    with _sources(a=_Given(_texts(words)), b=_Given(_texts(900))), pytest.raises(InputError, match=message):
        draw_samples(without_bos, calibration, heldout, 16, 10, 0)


def test_a_sample_without_room_for_a_token_is_refused(with_bos: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="seqlen"):
        draw_samples(with_bos, [SourceSpec("manual")], [], 8, 1, 0)


def test_the_manual_calibrates_without_a_network(tokenizer: PreTrainedTokenizerBase) -> None:
    drawn = draw_samples(tokenizer, [SourceSpec("manual")], [], 8, 64, 0)
    text = "\n\n".join(load_documents("manual", "train"))
    assert all(body in text for body in _bodies(tokenizer, drawn.calibration))
