"""Each filter rejects what it is meant to, keeps prose, and decides as the process before it would have."""

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
    """A manual full of operators and brackets is near the limits; its plain paragraphs must not exceed them."""
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
    """The twins take quadratic time and use no sets of n-grams."""
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


def test_a_text_of_just_as_many_tokens_is_long_enough() -> None:
    assert LongEnough(2).judge(text("Just enough.")).reason is None
    assert LongEnough(3).judge(text("Just enough.")).reason == "2 tokens"


@pytest.mark.parametrize(("share", "stays"), [(0.8, True), (0.79, False)])
def test_a_text_may_have_a_fifth_in_another_language(
    share: float, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "share_in", lambda *_: share)
    assert (InLanguage("en").judge(text(PROSE)).reason is None) is stays


LIMITS = {2: 0.20, 3: 0.18, 4: 0.16, 5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""From Rae et al. 2021, Table A1."""


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("n", LIMITS)
def test_ngrams_have_the_limits_of_the_paper(n: int, unit: int) -> None:
    """A run of n words, or of 4 n characters without spaces, is repeated; all other characters occur once."""
    run, rest = [chr(0x4E00 + place) for place in range(n * unit)], iter(range(0x5E00, 0x8000))
    for times in (2, 4, 6):
        signs = [sign for _ in range(times) for sign in (*run, chr(next(rest)))]
        signs += [chr(next(rest)) for _ in range(max(400 - len(signs), 0))]
        top = {size: times * size * unit for size in (2, 3, 4) if size <= n}
        double = dict.fromkeys(range(5, n + 1), (times - 1) * n * unit)
        value = max(count / len(signs) / LIMITS[size] for size, count in (top | double).items())
        found = NotRepetitive().judge(text((" " if unit == 1 else "").join(signs)))
        assert found.value == pytest.approx(value)
        assert (found.reason is None) is (value <= 1)


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ("x" * 96 + "=" * 4, 0.04),
        ("x" * 95 + "=@^#~", 0.05),
        ("x" * 92 + "<br>" + "x" * 4, 4 / 100),
        ("import os\nreturn 1\nelse:", 0.0),
        ("One.\nTwo.\nThree.\nreturn x", 1 / 4 / 8),
        ("One.\nTwo.\n\nreturn x\nbreak;", 2 / 4 / 8),
    ],
)
def test_symbols_tags_and_lines_of_code_are_counted(words: str, share: float) -> None:
    found = NoCode().judge(text(words))
    assert found.value == pytest.approx(share)
    assert (found.reason is None) is (share <= 0.04)


def test_capitals_make_no_other_text() -> None:
    judge = NoDuplicate()
    judge.take_note(text(PROSE), kept=True)
    assert judge.judge(text(PROSE.upper())).value == 1


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
    with pytest.raises(InputError, match=r"pip install 'reprune\[generate\]', or leave that filter out"):
        require_filters(FILTERS)
