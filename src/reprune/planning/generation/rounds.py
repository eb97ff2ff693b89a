"""One round of the paper's procedure: begin many texts, screen their first words, write those that pass, filter them.

What a round writes depends only on the seed and its own number, so rounds can be written in any order by any number
of processes. What is kept of it depends on what the filters have learned from the rounds before, so rounds are judged
in order. Knows what an author can do, not what it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from reprune.planning.generation.filters import Filter, Text
from reprune.planning.generation.firsts import FirstTokens
from reprune.planning.generation.language import language_of
from reprune.planning.generation.settings import Generation

Ids = tuple[int, ...]


@final
@dataclass(frozen=True)
class Written:
    """A text that an author has written from a prefix."""

    text: str
    token_ids: Ids  # of the whole text, without BOS
    mean_log_probability: float | None
    ended: bool  # by an end-of-text token, not by its length


class Author(ABC):
    """Something that writes texts: a model in this process, or one behind an endpoint."""

    rows: int
    """The rows of its embedding: token ids are below this number."""

    @abstractmethod
    def begin(self, firsts: Sequence[int]) -> list[tuple[str, Ids]]:
        """The texts and tokens of prefixes: each first token, and the four after it by greedy choice."""

    @abstractmethod
    def write(self, prefixes: Sequence[Ids], number: int) -> list[Written]:
        """Continue each prefix by sampling. `number` is the round's, and determines what is drawn."""


_Line = dict[str, Any]


@final
@dataclass(frozen=True)
class Draft:
    """What a round has written, before any text is judged; it can be written as JSON."""

    begun: int
    rejected: Sequence[_Line]  # prefixes, as lines of the file
    lines: Sequence[_Line]  # texts, as lines of the file without the judgement
    begins_in: Sequence[str]  # the language of each text's prefix


@final
@dataclass
class Round:
    """The result of a round, as lines of JSON, in order."""

    kept: list[_Line] = field(default_factory=list)
    rejected: list[_Line] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def draft(author: Author, tokens: FirstTokens, settings: Generation, number: int) -> Draft:
    """Write the round of that number, which does not depend on any other."""
    generator = np.random.default_rng((settings.seed, number))
    firsts = [int(token) for token in tokens.draw(generator, 2 * settings.batch_size)]
    rejected: list[_Line] = []
    origins: list[_Line] = []
    prefixes: list[Ids] = []
    begins_in: list[str] = []
    for first, (text, ids) in zip(firsts, author.begin(firsts), strict=True):
        language = language_of(text)
        if tokens.signs.intersection(ids):
            reason = "holds a token that is no text"
        elif language.fits(settings.language):
            prefixes.append(ids)
            origins.append({"seed": settings.seed, "prefix": text, "first_token": first, "round": number})
            begins_in.append(language.code)
            continue
        else:
            reason = f"reads as {language.code}"
        line = {"prefix": text, "token_ids": list(ids), "round": number}
        rejected.append({**line, "rejected": "prefix", "reason": reason, "score": round(language.score, 4)})
    written = author.write(prefixes, number) if prefixes else []
    lines = [_line(one, origin) for one, origin in zip(written, origins, strict=True)]
    return Draft(len(firsts), rejected, lines, begins_in)


def _line(one: Written, origin: _Line) -> _Line:
    likelihood = one.mean_log_probability
    language = language_of(one.text)
    return {
        "text": one.text,
        "token_ids": list(one.token_ids),
        **origin,
        "language": language.code,
        "language_score": round(language.score, 4),
        # Rounded here, so that filters see the same value as when they learn from the file.
        "mean_log_probability": None if likelihood is None else round(likelihood, 4),
        "ended": one.ended,
    }


def judge(draft: Draft, filters: Sequence[Filter], wanted: int) -> Round:
    """Judge the texts of a round; those beyond the number wanted are neither judged nor kept.

    The filters must have learned from all rounds before, and learn from this one.
    """
    found = Round(rejected=list(draft.rejected), counts=Counter(begun=draft.begun))
    if draft.rejected:
        found.counts["rejected prefix"] = len(draft.rejected)
    for line, begins_in in zip(draft.lines, draft.begins_in, strict=True):
        if len(found.kept) == wanted:
            found.counts["left over"] += 1
        else:
            _judge(line, begins_in, filters, found)
    return found


def _judge(line: _Line, begins_in: str, filters: Sequence[Filter], found: Round) -> None:
    text = Text(line["text"], tuple(line["token_ids"]), line["mean_log_probability"])
    measured: dict[str, float] = {}
    reason: tuple[str, str] | None = None
    for one_filter in filters:
        judgement = one_filter.judge(text)
        measured[one_filter.name] = round(judgement.value, 4)
        if judgement.reason is not None:
            reason = one_filter.name, judgement.reason
            break
    for one_filter in filters:
        one_filter.take_note(text, reason is None)
    if reason is None:
        found.counts["kept"] += 1
        found.kept.append({**line, "kept": {"prefix": f"reads as {begins_in}", **measured}})
    else:
        found.counts[f"rejected {reason[0]}"] += 1
        found.rejected.append({**line, "measured": measured, "rejected": reason[0], "reason": reason[1]})
