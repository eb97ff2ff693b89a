"""Texts begin with any token of text, and with no other; tokens that are no text end them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import transformers as tf
from tokenizers import AddedToken, Tokenizer, models

from reprune.errors import InputError
from reprune.planning.generation.firsts import first_tokens, signs
from tests import tiny

_SPECIAL = ["<bos>", "<eos>", "<start_of_turn>"]
_UNUSED = ["<unused7>", "[unused3]", "<|reserved_special_token_12|>", "<extra_id_4>", "<|placeholder2|>"]


def tokenizer() -> tf.PreTrainedTokenizerFast:
    words = ["the", "\n", "unused", "<div>", "<0x0A>", "<0xe2>", "ré"]
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *_UNUSED, *words])}
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="the")), bos_token="<bos>", eos_token="<eos>"
    )
    made.add_tokens([AddedToken("<start_of_turn>", special=True)], special_tokens=True)
    return made


def test_special_unused_byte_and_padding_tokens_are_left_out() -> None:
    made = tokenizer()
    found = first_tokens(made, rows=20)
    assert {made.convert_ids_to_tokens(int(index)) for index in found.ids} == {"the", "\n", "unused", "<div>", "ré"}
    assert found.left_out == {"byte": 2, "no token of the tokenizer": 5, "special": 3, "unused": 5}


def test_a_class_that_does_not_tell_its_added_tokens_has_special_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In mistral-common's class it is a method, which raises."""

    def added_tokens_decoder(self: object) -> None:
        raise NotImplementedError

    made = tokenizer()
    expected = first_tokens(made, rows=20)
    monkeypatch.setattr(tf.PreTrainedTokenizerFast, "added_tokens_decoder", added_tokens_decoder)
    monkeypatch.setattr(tf.PreTrainedTokenizerFast, "all_special_ids", [0, 1, 2])
    found = first_tokens(made, rows=20)
    assert (found.ids.tolist(), found.signs) == (expected.ids.tolist(), expected.signs)


@pytest.mark.parametrize(
    ("token", "sign"),
    [
        ("<start_of_image>", True),
        ("<|fim_pad|>", True),
        ("</tool_call>", True),
        ("<\N{FULLWIDTH VERTICAL LINE}User\N{FULLWIDTH VERTICAL LINE}>", True),
        ("<\N{FULLWIDTH VERTICAL LINE}tool\u2581calls\u2581begin\N{FULLWIDTH VERTICAL LINE}>", True),
        ("[|user|]", True),
        ("[INST]", True),
        ("[/INST]", True),
        ("[TOOL_CALLS]", True),
        ("<image>", True),
        ("</think>", True),
        ("[1]", False),
        ("[sic]", False),
        ("<table>", False),
        ("<div>", False),
        ("<a_1>", False),
        ("a_b", False),
    ],
)
def test_added_tokens_that_are_signs_are_known_by_their_form(token: str, sign: bool) -> None:
    made = tokenizer()
    made.add_tokens([AddedToken(token, special=False)])
    index = made.convert_tokens_to_ids(token)
    assert (index in signs(made)) == sign
    assert (index in first_tokens(made, rows=20).ids) == (not sign)
    assert len(signs(made)) == len(_SPECIAL) + len(_UNUSED) + sign


def test_pieces_of_characters_are_left_out() -> None:
    made = tiny.tokenizer()
    found = first_tokens(made, rows=tiny.VOCABULARY)
    assert found.left_out["special"] == 3
    assert found.left_out["part of a character"] >= 100
    assert all("\ufffd" not in made.decode([int(index)]) for index in found.ids)
    assert len(found.ids) + sum(found.left_out.values()) == tiny.VOCABULARY


def test_every_token_is_drawn_as_often_as_any_other() -> None:
    found = first_tokens(tiny.tokenizer(), rows=tiny.VOCABULARY)
    drawn = found.draw(np.random.default_rng(0), 200 * len(found.ids))
    counts = Counter(drawn.tolist())
    assert set(counts) == set(found.ids.tolist())
    assert all(120 < count < 290 for count in counts.values())


def test_a_tokenizer_without_text_is_refused() -> None:
    with pytest.raises(InputError, match="no token that a text could begin with"):
        first_tokens(tokenizer(), rows=3)
