"""Tokenizes documents: what a tokenizer puts before a text, and texts packed into one row of tokens.

Knows tokenizers and documents; knows nothing of sources, samples or random choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reprune.planning.documents import Documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = NDArray[np.int64]
PIECE = 1 << 20  # characters tokenized at a time; an encoding takes some hundred bytes per token
LINE = 2 * PIECE  # further characters that are searched for the end of a line


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that every sample starts with: those that the tokenizer itself puts before a text.

    For most models that is one beginning-of-sequence (BOS) token, or none; what a tokenizer adds at the end is left
    out. Models trained with BOS need it on every sample: without it, SparseGPT's perplexity on Gemma 3 270M rose
    from 48 to 57.
    """
    plain = _ids(tokenizer, "a", special=False)
    whole = _ids(tokenizer, "a", special=True)
    # The prefix ends where the text's own tokens begin. If the letter gives no tokens, only a BOS can be recognized.
    size = next((i for i in range(len(whole)) if plain and whole[i : i + len(plain)] == plain), None)
    return whole[: size if size is not None else int(whole[:1] == [tokenizer.bos_token_id])]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """The tokens of a text without special ones, (tokens,) int64."""
    return np.asarray(_ids(tokenizer, text, special=False), dtype=np.int64)


def foreign_tokens(tokenizer: PreTrainedTokenizerBase, documents: Documents, used: Iterable[int]) -> int:
    """How many of the documents come with tokens that are not this tokenizer's, so that their text is tokenized."""
    return sum(
        documents.token_ids(index) is not None and _generated(tokenizer, documents, index) is None for index in used
    )


def pack(
    tokenizer: PreTrainedTokenizerBase,
    documents: Documents,
    order: Iterable[int],
    prefix: list[int],
    limit: int | None = None,
) -> tuple[Tokens, list[int]]:
    """Join documents by their joiner, in the given order, and tokenize the whole.

    Long texts are tokenized in pieces that end with a document, a line or, if lines are long, a word. Documents with
    tokens of their own keep them. With a `limit`, reading stops once there are that many tokens. Returns the tokens,
    (tokens,) int64, and the indices of the documents read.
    """
    used: list[int] = []
    rows: list[Tokens] = []
    total = 0
    for run in _runs(tokenizer, documents, order, used):
        rows.append(encode(tokenizer, run) if isinstance(run, str) else _without(prefix, run))
        total += len(rows[-1])
        if limit is not None and total >= limit:
            break
    return np.concatenate([np.empty(0, np.int64), *rows]), used


def _runs(
    tokenizer: PreTrainedTokenizerBase, documents: Documents, order: Iterable[int], used: list[int]
) -> Iterator[str | list[int]]:
    """Cut the joined text into pieces of about PIECE characters; documents with tokens of their own give those."""
    parts: list[str] = []
    size = 0
    for index in order:
        if used:
            parts.append(documents.joiner)
        used.append(index)
        ids = _generated(tokenizer, documents, index)
        if ids is None:
            parts.append(documents[index])
            size += len(parts[-1])
        if ids is not None or size >= PIECE:
            yield from _pieces("".join(parts))
            parts, size = [], 0
        if ids is not None:
            yield ids
    yield from _pieces("".join(parts))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = _end(text, start + PIECE)
        yield text[start:end]
        start = end


def _end(text: str, least: int) -> int:
    """Where a piece ends: after the first newline from `least` on, or before a space if that is too far away."""
    line = text.find("\n", least, least + LINE)
    if line >= 0 or len(text) <= least + LINE:
        return line + 1 or len(text)
    space = text.find(" ", least, least + LINE)
    return space if space >= 0 else least


def _generated(tokenizer: PreTrainedTokenizerBase, documents: Documents, index: int) -> list[int] | None:
    """The tokens that a document was generated as, if they are this tokenizer's tokens of its text.

    The text may leave out special tokens such as BOS, as `reprune generate` does, or spell them. The text of a server
    may continue after the last token.
    """
    ids = documents.token_ids(index)
    if ids is None:
        return None
    text = documents[index]
    try:
        decoded = text in (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))
    except (LookupError, OverflowError, TypeError, ValueError):  # numbers that are not token ids
        return None
    return ids if decoded or _ids(tokenizer, text, special=False)[: len(ids)] == ids else None


def _without(prefix: list[int], ids: list[int]) -> Tokens:
    own = ids[len(prefix) :] if prefix and ids[: len(prefix)] == prefix else ids
    return np.asarray(own, dtype=np.int64)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    unasked = {"return_token_type_ids": False} if "token_type_ids" in tokenizer.model_input_names else {}
    encoding: Any = tokenizer(
        text,
        add_special_tokens=special,
        return_attention_mask=False,
        **unasked,  # not every class takes it: mistral-common's does not
        verbose=False,  # no warning that the text exceeds the model's maximum: it is cut afterwards
    )
    return list(encoding["input_ids"])
