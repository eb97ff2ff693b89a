"""Draws samples, which are rows of tokens, from sources: to calibrate on, to hold out, and to evaluate on.

Ensures that no text is used twice; knows nothing of models. Calibration and held-out samples both come from the `train`
split, so that nothing chosen by them has seen the text that perplexity is measured on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor

from reprune.errors import InputError
from reprune.planning.documents import Documents, label, said_unread, text_sha256
from reprune.planning.shares import Role, Share, most, share_out
from reprune.planning.sources import SourceSpec
from reprune.planning.tokens import Tokens, beginning, encode, foreign_tokens, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHOICE = 4  # packed: to choose spans at random, up to this many times the needed tokens are read
_LONG_ENOUGH = 1 / 1000  # if a smaller share of a collection's documents is long enough, they are joined
_LOOKED_AT = 4000  # documents to visit before that is judged
_COMPARED = 100  # documents, at most and evenly spread, by which collections of equal size are compared
_CHARACTERS = 16  # per token, more than any text needs; this much is read if only some windows are wanted


_Chosen = tuple[Tokens, str, int]  # rows (count, width), the SHA-256 of their texts, how many have foreign tokens


@final
@dataclass(frozen=True)
class SourceRecord:
    """What one source gave in one role: its display name, the number of samples drawn, and of documents it has.

    `sha256` is that of the texts that the samples were drawn from, joined, in UTF-8. `foreign_tokens` counts the texts
    whose own token ids were ignored because they are not this tokenizer's. `commit` is that of a Hub data set.
    `unread_files` counts the files of a folder that look like text but are not read.
    """

    name: str
    count: int
    documents: int
    sha256: str
    role: Role
    foreign_tokens: int
    commit: str | None = None
    unread_files: int = 0


@final
@dataclass(frozen=True, eq=False)
class Samples:
    """Calibration samples (N, T) and held-out samples (K, T), int64, in the order of their sources.

    `sha256` is over both tensors: for each its shape and then its values, as little-endian int64.
    """

    calibration: Tensor
    heldout: Tensor
    sha256: str
    sources: list[SourceRecord]

    @property
    def notes(self) -> list[str]:
        """What the user should know about the samples."""
        names = dict.fromkeys(source.name for source in self.sources if source.foreign_tokens)
        unread = {source.name: source.unread_files for source in self.sources if source.unread_files}
        return [said_unread(name, count) for name, count in unread.items()] + [
            f"{label(name)}: some of its token ids do not decode to their texts with this model's tokenizer; these "
            "texts are tokenized again"
            for name in names
        ]


def draw_samples(
    tokenizer: PreTrainedTokenizerBase,
    calibration: list[SourceSpec],
    heldout: list[SourceSpec],
    samples: int,
    seqlen: int,
    seed: int,
    local: bool = False,
) -> Samples:
    """Draw calibration and held-out samples of exactly `seqlen` tokens (the paper: 256 of 1024 from C4).

    `share_out` decides how many samples each source gives: N calibration samples and, in addition, K held-out ones,
    by default an eighth of N from the same sources. Each sample begins with what the tokenizer puts before a text
    (its BOS token, if it adds one; see `beginning`).

    The documents of a collection are visited in random order, and each that is long enough gives one random span, as
    SparseGPT draws from C4. If the collection runs out, if fewer than one in a thousand of the visited documents are
    long enough, or if its rows are the lines of one text, the documents are joined and tokenized, and non-overlapping
    spans are chosen from a random offset.
    No two samples of one source share a document, or tokens of a packed text, whatever their roles. The same
    arguments give the same tensors. With `local`, sources that are not on this machine are left out.

    Raises InputError if a source cannot be loaded, if its text is too short (the message says which number of
    samples or --seqlen it allows), if one text is given under two names, or if `seqlen` has no room for any text.
    """
    prefix = beginning(tokenizer)
    width = _width(seqlen, prefix)
    shares = [share for share in share_out(calibration, heldout, samples) if share.source.local or not local]
    drawn: dict[Share, tuple[Tokens, SourceRecord]] = {}
    names = _Names()
    for source in dict.fromkeys(share.source for share in shares):
        own = [share for share in shares if share.source == source]
        documents = source.load("train")
        names.add(own[0].spec.name, documents)
        try:
            drawn |= _draw(tokenizer, documents, own, prefix, width, seed)
        except _TooShort as short:
            need = sum(share.count for share in own)
            remedy = most(calibration, heldout, samples, own[0], short.tokens // width)
            raise _too_short(short, documents.name, need, prefix, remedy) from None
    first, second = (
        torch.from_numpy(_begin(_joined([drawn[s][0] for s in shares if s.role == role], width), prefix))
        for role in ("calibration", "heldout")
    )  # (N, T), (K, T)
    return Samples(first, second, _sha256([first, second]), [drawn[share][1] for share in shares])


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Documents,
    seqlen: int,
    max_windows: int | None = None,
    begun_once: bool = False,
) -> Tensor:
    """Cut a whole text, joined and tokenized once, into consecutive windows. Returns (W, T) int64.

    The windows do not overlap and the last, incomplete one is dropped, as perplexity is measured in the GPTQ and
    SparseGPT papers. If the tokenizer adds a BOS token, each window is BOS and the next `seqlen` - 1 tokens, so no
    token between windows is left out. With `begun_once`, BOS comes only before the whole text, as in the code
    of these papers. At most the first `max_windows` windows are returned.

    Raises InputError if the text is shorter than one window, or if a window has no room for any text.
    """
    start = beginning(tokenizer)
    prefix = [] if begun_once else start
    width = _width(seqlen, prefix)
    tokens = _first_tokens(tokenizer, documents, None if max_windows is None else max_windows * width)
    if begun_once:
        tokens = np.concatenate([np.array(start, np.int64), tokens])
    windows = len(tokens) // width
    if windows == 0:
        raise InputError(
            f"text {documents.name!r}: expected at least {width} tokens for one window of {seqlen}, but "
            f"it has {len(tokens)}; give a longer text, or --seqlen {len(tokens) + len(prefix)} or less"
        )
    windows = min(windows, max_windows or windows)
    return torch.from_numpy(_begin(tokens[: windows * width].reshape(windows, width), prefix))


@final
class _Names:
    """The names of the sources read so far, by the content and by the places of their texts."""

    def __init__(self) -> None:
        self._names: dict[Hashable, str] = {}

    def add(self, name: str, documents: Documents) -> None:
        """Add a source; raise InputError if an earlier one has the same text, or reads one of its files."""
        size = len(documents)
        content = size, text_sha256(documents, range(0, size, size // _COMPARED + 1))
        within = next((self._names[place] for place in documents.places if place in self._names), None)
        if other := self._names.get(content, within):
            what = "is the same text" if content in self._names else "has text of it"
            raise InputError(
                f"{label(name)}: expected one name for one text, so that no sample is drawn twice, but {other!r} "
                f"{what}; use that name here too"
            )
        self._names |= dict.fromkeys((content, *documents.places), name)


class _TooShort(Exception):
    """A text has fewer tokens than its samples need."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__(tokens, width)
        self.tokens = tokens
        self.width = width


def _draw(
    tokenizer: PreTrainedTokenizerBase,
    documents: Documents,
    shares: list[Share],
    prefix: list[int],
    width: int,
    seed: int,
) -> dict[Share, tuple[Tokens, SourceRecord]]:
    """Draw all shares of one source: rows (count, width) without the prefix, and the records of their origin."""
    chosen = None
    if not documents.running and sum(share.count for share in shares) <= len(documents):
        chosen = _spans_of_documents(tokenizer, documents, shares, prefix, width, seed)
    if chosen is None:
        chosen = _spans_of_packed(tokenizer, documents, shares, prefix, width, seed)
    name, size, commit, unread = documents.name, len(documents), documents.commit, documents.unread
    return {
        share: (rows, SourceRecord(name, share.count, size, digest, share.role, foreign, commit, unread))
        for share, (rows, digest, foreign) in zip(shares, chosen, strict=True)
    }


def _spans_of_documents(
    tokenizer: PreTrainedTokenizerBase,
    documents: Documents,
    shares: list[Share],
    prefix: list[int],
    width: int,
    seed: int,
) -> list[_Chosen] | None:
    """One random span of each of `count` random documents that are long enough; None if these run out or are rare."""
    claimed: set[int] = set()  # used by an earlier share, or too short
    chosen: list[_Chosen] = []
    for share in shares:
        generator = share.generator(seed)
        rows: list[Tokens] = []
        used: list[int] = []
        looked_at = 0
        for index in generator.permutation(len(documents)).tolist():
            if len(rows) == share.count:
                break
            if index in claimed:
                continue
            if looked_at >= _LOOKED_AT and len(rows) < _LONG_ENOUGH * looked_at:
                return None
            looked_at += 1
            claimed.add(index)
            tokens, _ = pack(tokenizer, documents, [index], prefix)
            if len(tokens) >= width:
                start = int(generator.integers(len(tokens) - width + 1))
                rows.append(tokens[start : start + width])
                used.append(index)
        if len(rows) < share.count:
            return None
        chosen.append((np.stack(rows), text_sha256(documents, used), foreign_tokens(tokenizer, documents, used)))
    return chosen


def _spans_of_packed(
    tokenizer: PreTrainedTokenizerBase,
    documents: Documents,
    shares: list[Share],
    prefix: list[int],
    width: int,
    seed: int,
) -> list[_Chosen]:
    """Random non-overlapping spans of the joined text. Raises _TooShort if there are too few."""
    need = sum(share.count for share in shares) * width
    generators = [share.generator(seed) for share in shares]
    order = list(range(len(documents)))
    if not documents.running:
        order = generators[0].permutation(len(documents)).tolist()
    limit = None if documents.running else _CHOICE * need
    tokens, used = pack(tokenizer, documents, order, prefix, limit)
    if len(tokens) < need:
        raise _TooShort(len(tokens), width)
    offset = int(generators[0].integers(min(width, len(tokens) - need + 1)))
    spans = tokens[offset : offset + (len(tokens) - offset) // width * width].reshape(-1, width)
    digest, foreign = text_sha256(documents, used), foreign_tokens(tokenizer, documents, used)
    claimed: set[int] = set()
    chosen: list[_Chosen] = []
    for share, generator in zip(shares, generators, strict=True):
        free = [index for index in generator.permutation(len(spans)).tolist() if index not in claimed]
        claimed.update(free[: share.count])
        chosen.append((spans[free[: share.count]], digest, foreign))
    return chosen


def _too_short(short: _TooShort, name: str, need: int, prefix: list[int], most: str | None) -> InputError:
    """The error for a text that is too short; it names the largest settings that the text allows."""
    remedies = [] if most is None else [most]
    if short.tokens >= need:
        remedies.append(f"--seqlen {short.tokens // need + len(prefix)}")
    allowed = f", or at most {' or '.join(remedies)}" if remedies else ""
    return InputError(
        f"{label(name)}: expected {need * short.width:,} tokens for {need:,} samples of "
        f"{short.width + len(prefix)} (held-out ones included), but the text has {short.tokens:,}; give a "
        f"longer text{allowed}"
    )


def _width(seqlen: int, prefix: list[int]) -> int:
    if seqlen < len(prefix) + 1:
        raise InputError(f"seqlen: expected at least {len(prefix) + 1} tokens, but got {seqlen}; give a longer sample")
    return seqlen - len(prefix)


def _joined(rows: list[Tokens], width: int) -> Tokens:
    """All rows (samples, width); there may be none."""
    return np.concatenate([np.empty((0, width), np.int64), *rows])


def _begin(rows: Tokens, prefix: list[int]) -> Tokens:
    """Put the prefix before each row: (samples, width) -> (samples, T)."""
    return np.concatenate([np.tile(np.asarray(prefix, dtype=np.int64), (len(rows), 1)), rows], axis=1)


def _first_tokens(tokenizer: PreTrainedTokenizerBase, documents: Documents, wanted: int | None) -> Tokens:
    """The tokens of the joined text, (tokens,): all, or at least the first `wanted` if the text is much longer."""
    if wanted is not None and (head := _head(documents, wanted * _CHARACTERS)) is not None:
        tokens = encode(tokenizer, head)
        # A cut may change the tokens before it, so those that are used must be far from it.
        if len(tokens) >= 2 * wanted:
            return tokens
    return encode(tokenizer, documents.joiner.join(documents))


def _head(documents: Documents, characters: int) -> str | None:
    """The first characters of the joined text, or None if it has no more than these."""
    parts: list[str] = []
    size = 0
    for text in documents:
        parts += [documents.joiner, text] if parts else [text]
        size += len(text) + len(documents.joiner)
        if size > characters + len(documents.joiner):
            return "".join(parts)[:characters]
    return None


def _sha256(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.asarray(tensor.shape, dtype="<i8").tobytes())
        digest.update(tensor.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
