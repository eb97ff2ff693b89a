"""Tells tokens of text, with which a generated text may begin, from control tokens. Knows no model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from reprune.errors import InputError

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNUSED = re.compile(r"[<\[(]\|?[^<>\[\]()]*(unused|reserved|extra_id|dummy|placeholder)[^<>\[\]()]*\|?[>\])]", re.I)
_SIGN = re.compile(
    r"<[|\uff5c][^<>|\uff5c]+[|\uff5c]>"  # DeepSeek uses full-width bars
    r"|\[\|[^\[\]|]+\|\]|\[/?[A-Z]+(_[A-Z]+)*\]"  # of EXAONE and Mistral
    r"|</?([A-Za-z]+(_[A-Za-z]+)+|image|think)>"  # no HTML tag has an underscore, or is one of these two
)


@final
@dataclass(frozen=True)
class FirstTokens:
    """The tokens that texts may begin with, and how many are left out for which reason."""

    ids: NDArray[np.int64]  # ascending
    left_out: dict[str, int]
    signs: frozenset[int]  # the tokens that no text may contain

    def draw(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Draw `count` of them uniformly, with replacement, (count,)."""
        return self.ids[generator.integers(len(self.ids), size=count)]


def signs(tokenizer: Any) -> frozenset[int]:
    """The tokens that are never text: special ones, unused ones, and added ones such as <start_of_image>."""
    added = tokenizer.added_tokens_decoder
    if not isinstance(added, Mapping):  # mistral-common has a method that raises; all its added tokens are special
        added = {}
    found = set(tokenizer.all_special_ids)
    found |= {index for index, token in added.items() if token.special or _SIGN.fullmatch(str(token))}
    found |= {int(index) for token, index in tokenizer.get_vocab().items() if _UNUSED.fullmatch(str(token))}
    return frozenset(found)


def first_tokens(tokenizer: Any, rows: int) -> FirstTokens:
    """Find the first tokens among `rows` token ids, the rows of the model's embedding.

    Rows that are not a token of the tokenizer are padding.

    Raises:
        InputError: no token is left.
    """
    known = {int(index): str(token) for token, index in tokenizer.get_vocab().items()}
    special = signs(tokenizer)
    left_out: Counter[str] = Counter()
    ids: list[int] = []
    texts = dict(zip(known, tokenizer.batch_decode([[index] for index in known]), strict=True))
    for index in range(rows):
        reason = _reason(index, known.get(index), special, texts.get(index, ""))
        if reason is None:
            ids.append(index)
        else:
            left_out[reason] += 1
    if not ids:
        raise InputError("the tokenizer has no token that a text could begin with; use the model's own tokenizer.")
    return FirstTokens(np.asarray(ids, dtype=np.int64), dict(sorted(left_out.items())), special)


def _reason(index: int, token: str | None, special: frozenset[int], text: str) -> str | None:
    """The reason why a token is left out; None if it is not."""
    if token is None:
        return "no token of the tokenizer"
    if _UNUSED.fullmatch(token):
        return "unused"
    if index in special:
        return "special"
    if _BYTE.fullmatch(token):
        return "byte"
    if "\N{REPLACEMENT CHARACTER}" in text:
        return "part of a character"
    return None if text else "nothing to read"
