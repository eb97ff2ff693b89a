"""Each filter leaves out what it is for, keeps prose, and decides as a process before it would have."""

from __future__ import annotations

from collections import Counter
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.errors import InputError
from reprune.planning.generation import filters as module
from reprune.planning.generation.filters import (
    Filter,
    InLanguage,
    Likely,
    LongEnough,
    NoCode,
    NoDuplicate,
    NotRepetitive,
    Text,
    require_filters,
)
from reprune.planning.generation.settings import FILTERS

PROSE = (
    "The council met again on Thursday to discuss the repair of the old bridge. Several residents spoke, some of them "
    "for the second time, about the noise that the work would bring to their streets. The mayor listened for two hours "
    "and promised to come back with another plan before the end of the month. Nobody believed that it would be cheap, "
    "but most agreed that doing nothing had become the more expensive choice."
)
FRENCH = (
    "Le conseil s'est encore réuni jeudi pour parler de la réparation du vieux pont. Plusieurs habitants ont pris la "
    "parole au sujet du bruit que les travaux apporteraient dans leurs rues. Le maire a écouté pendant deux heures et "
    "a promis de revenir avec un autre projet avant la fin du mois."
)
CHINESE = (
    "市议会星期四再次开会。讨论旧桥的修缮问题。几位居民发了言。其中有人已经是第二次。谈的都是施工会给街道带来的噪音。"
    "市长听了两个小时。答应月底以前拿出另一个方案。没有人相信花费会少。但多数人同意。什么也不做已经成了更贵的选择。"
)
THAI = (
    "สภาเมืองประชุมอีกครั้งเมื่อวันพฤหัสบดีเพื่อหารือเรื่องการซ่อมสะพานเก่า ชาวบ้านหลายคนลุกขึ้นพูดถึงเสียงดังที่งานก่อสร้างจะนำมาสู่ถนนของพวกเขา "
    "นายกเทศมนตรีฟังอยู่สองชั่วโมงและรับปากว่าจะกลับมาพร้อมแผนใหม่ก่อนสิ้นเดือน"
)
PYTHON = """import os
def walk(folder):
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from walk(path)
        else:
            yield path
result = [x for x in walk(".")]
"""
HTML = '<div class="a"><p>The council met</p><ul><li>one</li><li>two</li></ul><a href="x.html">more</a></div>' * 3
JAVA = "public static void main(String[] args) {\n  int x = 0;\n  while (x < 10) {\n    x++;\n  }\n}\n" * 2


def text(words: str, likelihood: float | None = -3.0) -> Text:
    return Text(words, tuple(range(len(words.split()))), likelihood)


@pytest.mark.parametrize(
    ("judge", "bad", "reason"),
    [
        (LongEnough(40), "Too short.", "2 tokens"),
        (InLanguage("en"), FRENCH, "0% in en"),
        (InLanguage("en"), f"{PROSE[:150]} {FRENCH}", "in en"),
        (NotRepetitive(), "and then we went to the shop " * 30, "words again"),
        (NotRepetitive(), f"{PROSE} {PROSE}", "words again"),
        (NotRepetitive(), "今天天气很好。我们去公园玩。" * 30, "characters again"),
        (NotRepetitive(), "วันนี้อากาศดีเราไปเที่ยวสวนสาธารณะ " * 30, "characters again"),
        (NotRepetitive(), CHINESE * 2, "characters again"),
        (NotRepetitive(), " ", "no words"),
        (NoCode(), PYTHON, "code or markup"),
        (NoCode(), HTML, "code or markup"),
        (NoCode(), JAVA, "code or markup"),
        (NoCode(), "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n", "code or markup"),
    ],
)
def test_what_is_not_wanted_is_left_out_and_prose_is_not(judge: Filter, bad: str, reason: str) -> None:
    said = judge.judge(text(bad)).reason
    assert said is not None and reason in said
    assert judge.judge(text(PROSE)).reason is None


@pytest.mark.parametrize("prose", [FRENCH, CHINESE, THAI])
def test_prose_with_spaces_or_without_does_not_repeat_itself(prose: str) -> None:
    assert NotRepetitive().judge(text(prose)).reason is None


def test_english_reference_prose_passes() -> None:
    """A manual full of operators and brackets is near the edge; its plain paragraphs must not fall over it."""
    paragraphs = [part for topic in topics.values() for part in topic.split("\n\n") if part[:1].isupper()]
    plain = [part for part in paragraphs if len(part) > 300 and not any(odd in part for odd in ("   ", '"', "*"))]
    assert len(plain) > 20
    kept = [part for part in plain if not any(f.judge(text(part)).reason for f in (NotRepetitive(), InLanguage("en")))]
    assert len(kept) > 0.95 * len(plain)


def test_a_text_in_another_language_is_kept_where_that_is_asked_for() -> None:
    assert InLanguage("fr").judge(text(FRENCH)).reason is None
    assert InLanguage("fr").judge(text(PROSE)).reason is not None


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.integers(2, 6))
def test_ngrams_are_counted_as_one_would_by_hand(words: list[str], n: int) -> None:
    """The twins: quadratic, without sets."""
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    counts = Counter(grams)
    assert module._in_top(words, n) == max((n * c for c in counts.values() if c > 1), default=0)
    doubled = {
        start + offset
        for start, gram in enumerate(grams)
        if any(gram == earlier for earlier in grams[:start])
        for offset in range(n)
    }
    assert module._in_doubles(words, n) == len(doubled)


def test_only_texts_that_were_kept_are_duplicated() -> None:
    judge = NoDuplicate()
    assert judge.judge(text(PROSE)).reason is None
    judge.take_note(text(PROSE), kept=False)
    assert judge.judge(text(PROSE)).reason is None
    judge.take_note(text(PROSE), kept=True)
    assert judge.judge(text(PROSE)).reason == "100% the same"
    near = PROSE.replace("Thursday", "Friday")
    found = judge.judge(text(near))
    assert found.reason is not None and 0.7 < found.value < 1
    assert judge.judge(text(topics["assert"])).reason is None


def test_outliers_of_likelihood_are_left_out_once_there_is_something_to_compare_with() -> None:
    judge = Likely()
    values = [-3.0 + 0.1 * (number % 5) for number in range(16)]
    for value in values:
        assert judge.judge(text(PROSE, -99.0)).reason is None
        judge.take_note(text(PROSE, value), kept=value > -2.9)
    assert judge.judge(text(PROSE, -2.7)).reason is None
    assert judge.judge(text(PROSE, -6.0)).reason == "too unlikely: -6.00 a token"
    assert judge.judge(text(PROSE, -0.1)).reason == "too likely: -0.10 a token"
    assert judge.judge(text(PROSE, None)).reason is None, "an endpoint may not tell"


def test_texts_that_are_all_as_likely_have_no_outliers() -> None:
    judge = Likely()
    for _ in range(20):
        judge.take_note(text(PROSE, -3.0), kept=True)
    assert judge.judge(text(PROSE, -9.0)).reason is None


def test_only_duplicates_need_a_library_and_name_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_filters(FILTERS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_filters([name for name in FILTERS if name != "duplicates"])
    with pytest.raises(InputError, match=r"pip install 'reprune\[generate\]', or leave the filter duplicates out"):
        require_filters(FILTERS)
