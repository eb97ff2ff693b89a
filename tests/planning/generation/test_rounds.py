"""A round begins texts at random, writes those that begin in the language, and says why others were rejected."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, final

import numpy as np
import pytest

from reprune.planning.generation import rounds as module
from reprune.planning.generation.filters import Filter, Judgement, LongEnough, Text
from reprune.planning.generation.firsts import FirstTokens
from reprune.planning.generation.language import Language
from reprune.planning.generation.rounds import Author, Draft, Ids, Round, Written, draft, judge
from reprune.planning.generation.settings import Generation

FIRSTS = FirstTokens(np.arange(100, 200, dtype=np.int64), {}, frozenset({7}))


@final
class Scribe(Author):
    """Its texts' lengths depend on their first token; those with an even first token begin in English."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.asked: list[Ids] = []

    def begin(self, firsts: Sequence[int]) -> list[tuple[str, Ids]]:
        self.begun += firsts
        return [("even" if first % 2 == 0 else "odd", (first, 1, 2, 3, 4)) for first in firsts]

    def write(self, prefixes: Sequence[Ids], number: int) -> list[Written]:
        self.asked += prefixes
        return [Written(f"text {ids[0]}", (*ids, *range(ids[0] % 10)), -2.00004, True) for ids in prefixes]


@final
class Noting(Filter):
    name = "noting"

    def __init__(self) -> None:
        self.noted: list[tuple[str, bool]] = []

    def judge(self, text: Text) -> Judgement:
        return Judgement(len(self.noted), None)

    def take_note(self, text: Text, kept: bool) -> None:
        self.noted.append((text.text, kept))


def one_round(
    of: tuple[Author, FirstTokens, Generation], number: int, filters: Sequence[Filter] = (), wanted: int = 1000
) -> Round:
    return judge(draft(*of, number), filters, wanted)


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "language_of", lambda text: Language("de" if text == "odd" else "en", 0.87654321))


def test_a_beginning_with_a_token_that_is_no_text_is_not_written_on() -> None:
    scribe = Scribe()
    firsts = FirstTokens(np.arange(100, 200, dtype=np.int64), {}, frozenset({3}))
    found = one_round((scribe, firsts, Generation(batch_size=20, length=64)), 0)
    assert scribe.asked == []
    assert {line["reason"] for line in found.rejected} == {"holds a token that is no text"}
    assert found.counts == {"begun": 40, "rejected prefix": 40}


def test_only_beginnings_in_the_language_are_written_on() -> None:
    scribe, noting = Scribe(), Noting()
    settings = Generation(batch_size=20, length=64)
    found = one_round((scribe, FIRSTS, settings), 3, [LongEnough(8), noting])
    assert len(scribe.begun) == 40
    assert [ids[0] for ids in scribe.asked] == [first for first in scribe.begun if first % 2 == 0]
    long = [first for first in scribe.begun if first % 2 == 0 and first % 10 >= 3]
    short = [first for first in scribe.begun if first % 2 == 0 and first % 10 < 3]
    assert [line["first_token"] for line in found.kept] == long
    assert found.counts == {
        "begun": 40,
        "rejected prefix": sum(first % 2 for first in scribe.begun),
        "rejected length": len(short),
        "kept": len(long),
    }
    assert [text for text, _ in noting.noted] == [f"text {first}" for first in scribe.begun if first % 2 == 0]
    assert [kept for _, kept in noting.noted] == [first % 10 >= 3 for first in scribe.begun if first % 2 == 0]


def test_any_language_is_written_on_where_any_is_asked_for() -> None:
    settings = Generation(batch_size=20, length=64, language="any")
    found = one_round((Scribe(), FIRSTS, settings), 3)
    assert found.counts == {"begun": 40, "kept": 40}
    assert {line["kept"]["prefix"] for line in found.kept} == {"reads as de", "reads as en"}


def test_a_line_says_all_of_a_text() -> None:
    found = one_round((Scribe(), FIRSTS, Generation(batch_size=20, seed=7)), 0, [LongEnough(6)], wanted=1)
    (line,) = found.kept
    first = line["first_token"]
    assert line == {
        "text": f"text {first}",
        "token_ids": [first, 1, 2, 3, 4, *range(first % 10)],
        "seed": 7,
        "prefix": "even",
        "first_token": first,
        "round": 0,
        "language": "en",
        "language_score": 0.8765,
        "mean_log_probability": -2.0,
        "ended": True,
        "kept": {"prefix": "reads as en", "length": 5 + first % 10},
    }
    odd = next(one for one in found.rejected if one["rejected"] == "prefix")
    assert odd == {
        "prefix": "odd",
        "token_ids": [*odd["token_ids"][:1], 1, 2, 3, 4],
        "round": 0,
        "rejected": "prefix",
        "reason": "reads as de",
        "score": 0.8765,
    }


def test_texts_beyond_those_wanted_are_counted_and_no_more() -> None:
    whole = one_round((Scribe(), FIRSTS, Generation(batch_size=20)), 1)
    part = one_round((Scribe(), FIRSTS, Generation(batch_size=20)), 1, wanted=3)
    assert part.kept == whole.kept[:3]
    assert part.counts["left over"] == len(whole.kept) - 3


def test_the_first_filter_that_a_text_does_not_pass_is_why_it_went_and_no_other_looks_at_it() -> None:
    class Strict(Filter):
        name = "strict"

        def judge(self, text: Text) -> Judgement:
            return Judgement(1.0, "never")

    found = one_round((Scribe(), FIRSTS, Generation(batch_size=20)), 1, [Noting(), LongEnough(99), Strict()])
    texts = [line for line in found.rejected if "text" in line]
    assert {line["rejected"] for line in texts} == {"length"}
    assert {tuple(line["measured"]) for line in texts} == {("noting", "length")}
    assert found.counts["rejected length"] == len(texts) > 0
    assert "rejected strict" not in found.counts


def test_a_round_depends_on_the_seed_and_its_number_alone() -> None:
    def firsts(seed: int, number: int) -> list[Any]:
        scribe = Scribe()
        one_round((scribe, FIRSTS, Generation(batch_size=4, seed=seed)), number, wanted=9)
        return scribe.begun

    assert firsts(0, 5) == firsts(0, 5)
    assert firsts(0, 5) != firsts(0, 6)
    assert firsts(0, 5) not in (firsts(1, 5), firsts(1, 4))


def test_a_round_in_which_nothing_reads_well_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "language_of", lambda text: Language("de", 0.9))
    scribe = Scribe()
    found = one_round((scribe, FIRSTS, Generation(batch_size=3)), 0, wanted=9)
    assert (found.kept, len(found.rejected), scribe.asked) == ([], 6, [])


def test_a_draft_is_judged_elsewhere_as_it_would_be_here() -> None:
    drafted = draft(Scribe(), FIRSTS, Generation(batch_size=20), 2)
    told = Draft(**json.loads(json.dumps(asdict(drafted))))
    assert told == drafted
    assert judge(told, [LongEnough(8)], 3) == judge(drafted, [LongEnough(8)], 3)
