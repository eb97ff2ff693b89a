"""Filters of generated texts: each measures one property, and says whether the text may stay.

Texts come in a fixed order, and what a filter has learned (texts kept, likelihoods seen) follows from the texts before
alone. So a process that continues a file decides as the process before it would have.
"""

from __future__ import annotations

import importlib.util
import re
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from reprune.errors import InputError
from reprune.planning.generation.language import share_in


@final
@dataclass(frozen=True)
class Text:
    """A text that a model wrote."""

    text: str
    token_ids: tuple[int, ...]  # without a beginning-of-sequence token
    mean_log_probability: float | None  # natural logarithm, mean over the sampled tokens; None if not known


@final
@dataclass(frozen=True)
class Judgement:
    """What a filter measured of a text."""

    value: float
    reason: str | None  # why the text is rejected, in a few words; None if it may stay


class Filter(ABC):
    """One criterion by which a text may be rejected."""

    name: str

    @abstractmethod
    def judge(self, text: Text) -> Judgement:
        """Measure a text."""

    def take_note(self, text: Text, kept: bool) -> None:
        """Learn from a text that all filters have judged."""
        del text, kept


@final
@dataclass
class LongEnough(Filter):
    """The text has at least the tokens that a sample needs."""

    name = "length"
    tokens: int

    def judge(self, text: Text) -> Judgement:
        count = len(text.token_ids)
        return Judgement(count, f"{count} tokens" if count < self.tokens else None)


@final
@dataclass
class InLanguage(Filter):
    """The whole text is in the wanted language, not only its beginning."""

    name = "language"
    share = 0.8  # the least share of its letters that must be in it
    language: str

    def judge(self, text: Text) -> Judgement:
        share = share_in(text.text, self.language)
        return Judgement(share, f"{share:.0%} in {self.language}" if share < self.share else None)


@final
class NotRepetitive(Filter):
    """Words do not repeat too often, by the measures of Rae et al. 2021 (arXiv 2112.11446, Table A1).

    There is a limit on the share of characters in the most frequent n-gram of 2, 3 and 4 words each, and in all
    repeated n-grams of 5 to 10 words each. The value is the largest ratio of a share to its limit; above 1 is too much.
    In a text with hardly any spaces, such as Chinese or Thai, any `_CHARACTERS` consecutive characters count as a word.
    """

    name = "repetition"

    def judge(self, text: Text) -> Judgement:
        words = text.text.split()
        characters = sum(map(len, words))
        if not characters:
            return Judgement(0.0, "no words")
        unit, name = 1, "words"
        if characters > _LONGEST * len(words):
            words, unit, name = list("".join(words)), _CHARACTERS, "characters"
        found = {
            **{n: _in_top(words, n * unit) / characters / limit for n, limit in _TOP.items()},
            **{n: _in_doubles(words, n * unit) / characters / limit for n, limit in _DOUBLE.items()},
        }
        n, worst = max(found.items(), key=lambda item: item[1])
        return Judgement(worst, f"the same {n * unit} {name} again" if worst > 1 else None)


_CHARACTERS = 4  # consecutive characters that count as a word: few for Thai, many for Chinese
_LONGEST = 15  # mean characters per word; if there are more, the text has hardly any spaces
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DOUBLE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""The largest allowed share of characters, by the number of words in an n-gram."""


def _in_top(words: Sequence[str], n: int) -> int:
    """Characters in all occurrences of the n-gram that takes the most, among those that occur more than once."""
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    return max((sum(map(len, gram)) * count for gram, count in counts.items() if count > 1), default=0)


def _in_doubles(words: Sequence[str], n: int) -> int:
    """Characters of words in any n-gram that has occurred before."""
    seen: set[tuple[str, ...]] = set()
    doubled = [False] * len(words)
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            doubled[start : start + n] = [True] * n
        seen.add(gram)
    return sum(len(word) for word, double in zip(words, doubled, strict=True) if double)


@final
class NoCode(Filter):
    """The text is prose, not source code, markup or tables: few of its characters are typical of these."""

    name = "code"
    share = 0.04
    _TAG = re.compile(r"</?[A-Za-z][\w-]*(?:\s[^<>]*)?/?>|\[/?\w+\]|\\[A-Za-z]+\b|&\w+;")
    _LINE = re.compile(
        r"^\s*(?:[{}()\[\];]+|(?:import|from|def|class|return|public|private|static|const|let|var|function|#include|"
        r"using|package|elif|else:|try:|except)\b.*[;:{(]?|.*[;{]|[\w.]+\s*[-+*/]?=\s*\S.*|//.*|\|.*\|)\s*$"
    )

    def judge(self, text: Text) -> Judgement:
        share = max(self._symbols(text.text), self._lines(text.text))
        return Judgement(share, f"{share:.0%} code or markup" if share > self.share else None)

    def _symbols(self, text: str) -> float:
        """The share of characters that are in tags and commands, or are symbols that prose hardly uses."""
        inside = sum(len(tag) for tag in self._TAG.findall(text))
        bare = self._TAG.sub(" ", text)
        symbols = sum(bare.count(symbol) for symbol in "{}<>[]=|\\_#$^~`@+")
        return (inside + symbols) / max(len(text), 1)

    def _lines(self, text: str) -> float:
        """An eighth of the share of lines that look like code: some such lines do not matter."""
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 4:
            return 0.0
        return sum(bool(self._LINE.match(line)) for line in lines) / len(lines) / 8


@final
class NoDuplicate(Filter):
    """The text is not a near-duplicate of a kept one, by MinHash over runs of five words (Broder 1997; datasketch)."""

    name = "duplicates"
    similarity = 0.5  # the least Jaccard similarity of near-duplicates

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._index: Any = MinHashLSH(threshold=self.similarity, num_perm=_PERMUTATIONS)
        self._kept: dict[str, Any] = {}

    def judge(self, text: Text) -> Judgement:
        mine = self._hash(text)
        nearest = max((self._kept[key].jaccard(mine) for key in self._index.query(mine)), default=0.0)
        return Judgement(float(nearest), f"{nearest:.0%} the same" if nearest >= self.similarity else None)

    def take_note(self, text: Text, kept: bool) -> None:
        if not kept:
            return
        key = str(len(self._kept))
        self._kept[key] = self._hash(text)
        self._index.insert(key, self._kept[key])

    @staticmethod
    def _hash(text: Text) -> Any:
        from datasketch import MinHash

        words = re.findall(r"\w+", text.text.lower())
        made = MinHash(num_perm=_PERMUTATIONS, seed=1)
        runs = {" ".join(words[start : start + 5]) for start in range(max(len(words) - 4, 1))}
        made.update_batch([run.encode() for run in sorted(runs)])
        return made


_PERMUTATIONS = 128


@final
class Likely(Filter):
    """The text is neither far less likely per token than the model's other texts (junk), nor far more likely (rote).

    Far means more than `deviations` median absolute deviations from the median of all texts so far. The first texts
    all stay, because the median is not yet reliable.
    """

    name = "likelihood"
    deviations = 5.0
    least = 16  # texts to see before any is judged

    def __init__(self) -> None:
        self._seen: list[float] = []

    def judge(self, text: Text) -> Judgement:
        mine = text.mean_log_probability
        if mine is None or len(self._seen) < self.least:
            return Judgement(0.0, None)
        middle = statistics.median(self._seen)
        spread = statistics.median(abs(value - middle) for value in self._seen)
        far = (mine - middle) / spread if spread else 0.0
        side = "too likely" if far > 0 else "too unlikely"
        return Judgement(far, f"{side}: {mine:.2f} a token" if abs(far) > self.deviations else None)

    def take_note(self, text: Text, kept: bool) -> None:
        if text.mean_log_probability is not None:
            self._seen.append(text.mean_log_probability)


def require_filters(names: Sequence[str]) -> None:
    """Raise `InputError` if a library that these filters need is not installed."""
    if NoDuplicate.name in names and importlib.util.find_spec("datasketch") is None:
        raise InputError(
            "the filter 'duplicates' needs datasketch; install it with: pip install 'reprune[generate]', or leave that "
            "filter out."
        )
