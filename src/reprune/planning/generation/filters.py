"""Filters of generated texts: each looks at one thing, and says what it measured and whether the text may stay.

Texts come in a fixed order, and what a filter has learned from those before it (texts kept, likelihoods seen) follows
from them alone, so that a process that goes on with a file decides as the one before would have.
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
    mean_log_probability: float | None  # natural logarithm, a token, of those that were drawn; None if not known


@final
@dataclass(frozen=True)
class Judgement:
    """What a filter measured of a text."""

    value: float
    reason: str | None  # why it may not stay, in a few words; None if it may


class Filter(ABC):
    """One reason to leave a text out."""

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
    """A sample needs so many tokens."""

    name = "length"
    tokens: int

    def judge(self, text: Text) -> Judgement:
        count = len(text.token_ids)
        return Judgement(count, f"{count} tokens" if count < self.tokens else None)


@final
@dataclass
class InLanguage(Filter):
    """The whole text is in one language, not only its start."""

    name = "language"
    share = 0.8  # of its letters
    language: str

    def judge(self, text: Text) -> Judgement:
        share = share_in(text.text, self.language)
        return Judgement(share, f"{share:.0%} in {self.language}" if share < self.share else None)


@final
class NotRepetitive(Filter):
    """Words do not come again and again, by the measures of Rae et al. 2021 (arXiv 2112.11446, Table A1).

    The share of characters in the most frequent n-gram of 2, 3 and 4 words, and in all n-grams of 5 to 10 words that
    come more than once, each has a limit. The value is the largest share over its limit: above 1 is too much. Of a text
    with hardly a space, as Chinese or Thai, so many characters in a row, wherever they begin, stand for a word.
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


_CHARACTERS = 4  # for a word: few in Thai, many in Chinese
_LONGEST = 15  # characters a word on average, in a text of words
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DOUBLE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""By the words of an n-gram, the largest share of characters."""


def _in_top(words: Sequence[str], n: int) -> int:
    """Characters in the n-gram that takes most of them, if it comes more than once."""
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    return max((sum(map(len, gram)) * count for gram, count in counts.items() if count > 1), default=0)


def _in_doubles(words: Sequence[str], n: int) -> int:
    """Characters of words in any n-gram that came before."""
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
    """Prose, not source code, markup or tables: few of its characters are those that such things are made of."""

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
        """The share of characters in tags and commands, or of the kind that prose hardly has."""
        inside = sum(len(tag) for tag in self._TAG.findall(text))
        bare = self._TAG.sub(" ", text)
        symbols = sum(bare.count(symbol) for symbol in "{}<>[]=|\\_#$^~`@+")
        return (inside + symbols) / max(len(text), 1)

    def _lines(self, text: str) -> float:
        """The share of lines that look like code, an eighth of it: some lines are no matter."""
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 4:
            return 0.0
        return sum(bool(self._LINE.match(line)) for line in lines) / len(lines) / 8


@final
class NoDuplicate(Filter):
    """No text is nearly one that was kept: by MinHash over runs of five words (Broder 1997), as datasketch has it."""

    name = "duplicates"
    similarity = 0.5  # of Jaccard

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
    """Neither far less likely, a token, than the model's other texts (junk) nor far more (rote).

    Far is more than so many times the median deviation from the median of all texts written so far; the first ones,
    before there is a median to speak of, all stay.
    """

    name = "likelihood"
    deviations = 5.0
    least = 16  # texts before any is judged

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
    """Raise `InputError` where a library of these filters is not installed."""
    if NoDuplicate.name in names and importlib.util.find_spec("datasketch") is None:
        raise InputError(
            "the filter 'duplicates' needs datasketch; install it with: pip install 'reprune[generate]', or leave that "
            "filter out."
        )
