"""Every sample begins with what the tokenizer puts before a text, and packed texts are the joined texts."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from reprune.planning import tokens
from reprune.planning.documents import Documents
from reprune.planning.tokens import beginning, encode, pack

from .conftest import make_tokenizer


@pytest.mark.parametrize(
    ("bos", "eos", "expected"), [(True, False, [0]), (True, True, [0]), (False, True, []), (False, False, [])]
)
def test_the_beginning_is_what_the_tokenizer_adds(bos: bool, eos: bool, expected: list[int]) -> None:
    assert beginning(make_tokenizer(bos=bos, eos=eos)) == expected


@pytest.mark.parametrize("before", ["</s> <s>", "</s>"])
def test_the_beginning_may_be_other_tokens_than_bos_alone(before: str) -> None:
    """For example GLM's [gMASK]<sop>."""
    tokenizer = make_tokenizer(bos=False)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert beginning(tokenizer) == [1, 0][: len(before.split())]


@pytest.mark.parametrize(("bos", "eos", "expected"), [(True, False, [0]), (True, True, [0]), (False, True, [])])
def test_a_tokenizer_that_knows_no_latin_letter_begins_as_it_does(bos: bool, eos: bool, expected: list[int]) -> None:
    tokenizer = make_tokenizer(bos=bos, eos=eos)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-z]"), "")
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == []
    assert beginning(tokenizer) == expected


def test_a_class_is_not_asked_for_what_it_has_not(with_bos: PreTrainedTokenizerBase) -> None:
    """mistral-common's class takes no other arguments, and has no token types to leave out."""

    class Strict:
        bos_token_id, model_input_names = with_bos.bos_token_id, ["input_ids", "attention_mask"]

        def __call__(
            self, text: str, add_special_tokens: bool, return_attention_mask: bool, verbose: bool
        ) -> dict[str, list[int]]:
            assert not return_attention_mask
            assert not verbose
            return {"input_ids": list(with_bos(text, add_special_tokens=add_special_tokens)["input_ids"])}

    strict = cast("PreTrainedTokenizerBase", Strict())
    assert beginning(strict) == beginning(with_bos)
    assert encode(strict, "the if").tolist() == encode(with_bos, "the if").tolist()


@given(texts=st.lists(st.text("ab \n"), min_size=1), piece=st.integers(1, 20))
def test_packed_pieces_are_the_joined_text(with_bos: PreTrainedTokenizerBase, texts: list[str], piece: int) -> None:
    documents = Documents("texts", tuple(texts), joiner="--")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "PIECE", piece)
        packed, used = pack(with_bos, documents, range(len(texts)), [0])
    assert with_bos.decode(packed.tolist()) == "--".join(texts)
    assert used == list(range(len(texts)))


@pytest.mark.parametrize("between", [" ", ""], ids=["words", "none"])
def test_no_more_is_tokenized_at_a_time_where_lines_are_long(
    with_bos: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    """An example is text8, 100 MB in one line, whose encoding took 13 GB."""
    sizes: list[int] = []

    def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> tokens.Tokens:
        sizes.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr(tokens, "PIECE", 40)
    monkeypatch.setattr(tokens, "LINE", 60)
    monkeypatch.setattr(tokens, "encode", encoded)
    documents = Documents("texts", (between.join(["the", "if", "statement"] * 99) + "\n",))
    whole = encode(with_bos, documents[0]).tolist()
    packed, _ = pack(with_bos, documents, [0], [0])
    assert max(sizes) <= 100
    assert with_bos.decode(packed.tolist()) == documents[0]
    assert packed.tolist() == whole if between else len(packed) < 1.1 * len(whole)


def test_a_short_text_is_packed_as_one(with_bos: PreTrainedTokenizerBase) -> None:
    documents = Documents("texts", ("the if", "statement"))
    packed, used = pack(with_bos, documents, [1, 0], [0])
    assert packed.tolist() == encode(with_bos, "statement\n\nthe if").tolist()
    assert used == [1, 0]
    assert packed.dtype == np.int64


def test_generated_tokens_are_kept_as_they_are_without_their_prefix(
    with_bos: PreTrainedTokenizerBase,
) -> None:
    a, c = str(with_bos.decode([9, 8])), str(with_bos.decode([7]))
    documents = Documents("texts", (a, "b", c), joiner="-", token_ids=([0, 9, 8], None, [7]))
    assert pack(with_bos, documents, [0], [0])[0].tolist() == [9, 8]
    assert pack(with_bos, documents, [0], [])[0].tolist() == [0, 9, 8]
    assert pack(with_bos, documents, [1], [0])[0].tolist() == encode(with_bos, "b").tolist()
    packed, _ = pack(with_bos, documents, range(3), [0])
    assert packed.tolist() == [9, 8, *encode(with_bos, "-b-").tolist(), 7]


@pytest.mark.parametrize("raised", [IndexError, KeyError, OverflowError])
def test_ids_that_a_tokenizer_does_not_know_are_left_aside(
    with_bos: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    """What it raises depends on its class: mistral-common's raises KeyError."""

    def decode(*_: object, **__: object) -> str:
        raise raised

    monkeypatch.setattr(type(with_bos), "decode", decode)
    documents = Documents("texts", ("the if",), token_ids=([999],))
    assert pack(with_bos, documents, [0], [0])[0].tolist() == encode(with_bos, "the if").tolist()


def test_packing_stops_at_its_limit(with_bos: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PIECE", 1)
    documents = Documents("texts", ("aaaa",) * 50, joiner="--")
    packed, used = pack(with_bos, documents, range(50), [0], limit=12)
    assert 12 <= len(packed) < 20
    assert with_bos.decode(packed.tolist()) == "--".join(["aaaa"] * len(used))
