"""Evaluation windows are a text's tokens in order; a text that is too short is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from reprune.errors import InputError
from reprune.planning.documents import Documents
from reprune.planning.samples import evaluation_windows
from reprune.planning.tokens import beginning, encode
from tests.planning.test_samples import FEW, _bodies, _texts


@FEW
@given(words=st.lists(st.integers(1, 30), min_size=3, max_size=9), seqlen=st.integers(2, 20))
def test_windows_are_the_text_in_order(tokenizer: PreTrainedTokenizerBase, words: list[int], seqlen: int) -> None:
    documents = Documents("given", _texts(*words), joiner="\n\n")
    windows = evaluation_windows(tokenizer, documents, seqlen)
    whole = encode(tokenizer, "\n\n".join(documents)).tolist()
    width = seqlen - len(beginning(tokenizer))
    assert windows.shape == (len(whole) // width, seqlen)
    assert windows[:, seqlen - width :].flatten().tolist() == whole[: len(windows) * width]
    _bodies(tokenizer, windows)


@FEW
@given(words=st.lists(st.integers(0, 300), min_size=3, max_size=9), most=st.integers(1, 9))
def test_some_windows_are_the_first_of_all(tokenizer: PreTrainedTokenizerBase, words: list[int], most: int) -> None:
    documents = Documents("given", (*_texts(*words), "long enough for one"))
    every = evaluation_windows(tokenizer, documents, 8)
    assert torch.equal(evaluation_windows(tokenizer, documents, 8, most), every[:most])


def test_some_windows_of_long_words_are_the_first_of_all() -> None:
    words = [f"{number:040}" for number in range(99)]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(("?", *words))}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    by_words = PreTrainedTokenizerFast(tokenizer_object=core)  # type: ignore[no-untyped-call]  # its constructor
    documents = Documents("given", words, joiner=" ")
    every = evaluation_windows(by_words, documents, 8)
    assert every.flatten().tolist() == [*range(1, 97)]
    for most in (1, 4, 11):
        assert torch.equal(evaluation_windows(by_words, documents, 8, most), every[:most])


class _Read(tuple[str, ...]):
    """Texts that record which of them were read."""

    def __iter__(self) -> Iterator[str]:
        self.read = []
        for text in tuple.__iter__(self):
            self.read.append(text)
            yield text


def test_for_some_windows_a_long_text_is_not_read_to_its_end(with_bos: PreTrainedTokenizerBase) -> None:
    texts = _Read(_texts(*[9] * 99))
    evaluation_windows(with_bos, Documents("given", texts), 8, 2)
    assert 1 < len(texts.read) < 9


def test_windows_of_too_short_a_text_are_refused(with_bos: PreTrainedTokenizerBase) -> None:
    documents = Documents("given", ("a b",))
    tokens = len(encode(with_bos, "a b"))
    with pytest.raises(InputError, match=rf"at least 63 tokens .* has {tokens}; .* --seqlen {tokens + 1} or less"):
        evaluation_windows(with_bos, documents, 64)
