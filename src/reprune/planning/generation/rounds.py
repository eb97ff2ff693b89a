"""One round of the paper's procedure: begin many texts, screen their first words, write those that pass, filter them.

A round depends on the seed and its own number alone, and on what the filters have learned before it, so that rounds
can be done one after another by any number of processes. Knows an author by what it can do, not what it is.
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
    """What an author has made of a beginning."""

    text: str
    token_ids: Ids  # the whole text's, without BOS
    mean_log_probability: float | None
    ended: bool  # by the end of the text, not by its length


class Author(ABC):
    """Something that writes texts: a model here, or one behind an endpoint."""

    rows: int
    """Of its embedding: token ids are below this number."""

    @abstractmethod
    def begin(self, firsts: Sequence[int], number: int) -> list[tuple[str, Ids]]:
        """Texts and tokens of prefixes: each first token, and the four after it by greedy choice."""

    @abstractmethod
    def write(self, prefixes: Sequence[Ids], number: int) -> list[Written]:
        """Go on with each prefix by sampling. `number` is that of the round, which decides what is drawn."""


@final
@dataclass
class Round:
    """What a round gave, as lines of JSON, in order."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@final
class Procedure:
    """Texts, round after round."""

    def __init__(self, author: Author, firsts: FirstTokens, settings: Generation, filters: Sequence[Filter]) -> None:
        self._author = author
        self._firsts = firsts
        self._settings = settings
        self._filters = filters

    def round(self, number: int, wanted: int) -> Round:
        """Do a round; texts beyond the number wanted are neither judged nor kept."""
        settings, found = self._settings, Round()
        generator = np.random.default_rng((settings.seed, number))
        firsts = [int(token) for token in self._firsts.draw(generator, 2 * settings.batch_size)]
        prefixes: list[tuple[int, str, str, Ids]] = []
        for first, (text, ids) in zip(firsts, self._author.begin(firsts, number), strict=True):
            found.counts["begun"] += 1
            language = language_of(text)
            if self._firsts.signs.intersection(ids):
                reason = "holds a token that is no text"
            elif language.fits(settings.language):
                prefixes.append((first, text, language.code, ids))
                continue
            else:
                reason = f"reads as {language.code}"
            found.counts["rejected prefix"] += 1
            line = {"prefix": text, "token_ids": list(ids), "round": number}
            found.rejected.append({**line, "rejected": "prefix", "reason": reason, "score": round(language.score, 4)})
        if not prefixes:
            return found
        written = self._author.write([ids for *_, ids in prefixes], number)
        for (first, prefix, code, _), one in zip(prefixes, written, strict=True):
            if len(found.kept) == wanted:
                found.counts["left over"] += 1
                continue
            self._judge(one, {"prefix": prefix, "first_token": first, "round": number}, code, found)
        return found

    def _judge(self, one: Written, origin: dict[str, Any], begins_in: str, found: Round) -> None:
        likelihood = one.mean_log_probability
        likelihood = None if likelihood is None else round(likelihood, 4)  # as a process that reads the file knows it
        text = Text(one.text, one.token_ids, likelihood)
        language = language_of(one.text)
        line = {
            "text": one.text,
            "token_ids": list(one.token_ids),
            "seed": self._settings.seed,
            **origin,
            "language": language.code,
            "language_score": round(language.score, 4),
            "mean_log_probability": likelihood,
            "ended": one.ended,
        }
        measured: dict[str, float] = {}
        reason: tuple[str, str] | None = None
        for one_filter in self._filters:
            judgement = one_filter.judge(text)
            measured[one_filter.name] = round(judgement.value, 4)
            if judgement.reason is not None:
                reason = one_filter.name, judgement.reason
                break
        for one_filter in self._filters:
            one_filter.take_note(text, reason is None)
        if reason is None:
            found.counts["kept"] += 1
            found.kept.append({**line, "kept": {"prefix": f"reads as {begins_in}", **measured}})
        else:
            found.counts[f"rejected {reason[0]}"] += 1
            found.rejected.append({**line, "measured": measured, "rejected": reason[0], "reason": reason[1]})
