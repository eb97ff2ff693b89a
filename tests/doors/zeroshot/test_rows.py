"""Local rows become the columns of the Hub's data sets; if one is wrong, its line and field are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reprune.doors.zeroshot.rows import LAYOUTS
from reprune.errors import InputError

GOOD: dict[str, dict[str, Any]] = {
    "boolq": {"question": "is it so", "passage": "It is so.", "idx": 3, "label": True},
    "rte": {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment", "idx": 0},
    "hellaswag": {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "endings": ["is using wrap.", "is ripping tiles off."],
        "label": 1,
    },
    "winogrande": {
        "qID": "x",
        "sentence": "Ann saw Bea, so _ waved.",
        "option1": "Ann",
        "option2": "Bea",
        "answer": "1",
    },
    "arc_easy": {"id": "a", "question": "What falls?", "choices": ["Rain.", "Sun.", "Sky."], "gold": 0},
    "arc_challenge": {"id": "b", "question": "What rises?", "choices": ["Rain.", "Smoke."], "gold": 1},
    "openbookqa": {"query": "Predators eat", "choices": ["lions", "bunnies"], "gold": 1},
}


def read(task: str, folder: Path, *lines: str | dict[str, Any]) -> list[dict[str, Any]]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / LAYOUTS[task].file).write_text(text + "\n", encoding="utf-8")
    return LAYOUTS[task].read(folder)


def test_the_tasks_are_the_papers() -> None:
    assert list(LAYOUTS) == list(GOOD)
    assert {name: layout.file for name, layout in LAYOUTS.items()} == {
        "boolq": "boolq_dev.jsonl",
        "rte": "rte_dev.jsonl",
        "hellaswag": "hellaswag_val.jsonl",
        "winogrande": "winogrande_dev.jsonl",
        "arc_easy": "arc_easy_test.jsonl",
        "arc_challenge": "arc_challenge_test.jsonl",
        "openbookqa": "openbookqa_test.jsonl",
    }


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_a_yes_of_boolq_is_1(label: bool | int, tmp_path: Path) -> None:
    (row,) = read("boolq", tmp_path, {**GOOD["boolq"], "label": label})
    assert row == {"question": "is it so", "passage": "It is so.", "label": int(label)}


@pytest.mark.parametrize(("label", "column"), [("entailment", 0), ("not_entailment", 1)])
def test_entailment_of_rte_is_0(label: str, column: int, tmp_path: Path) -> None:
    (row,) = read("rte", tmp_path, {**GOOD["rte"], "label": label})
    assert row == {"sentence1": "It rains.", "sentence2": "It is wet.", "label": column}


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge", "openbookqa"])
@pytest.mark.parametrize("gold", range(5))
def test_choices_get_keys_by_their_order(task: str, gold: int, tmp_path: Path) -> None:
    texts = [f"choice {number}" for number in range(5)]
    (row,) = read(task, tmp_path, {**GOOD[task], "choices": texts, "gold": gold})
    assert row["choices"] == {"text": texts, "label": ["A", "B", "C", "D", "E"]}
    assert row["answerKey"] == "ABCDE"[gold]
    stem = ("question_stem", "query") if task == "openbookqa" else ("question", "question")
    assert row[stem[0]] == GOOD[task][stem[1]]


def test_winogrande_keeps_its_columns(tmp_path: Path) -> None:
    (row,) = read("winogrande", tmp_path, GOOD["winogrande"])
    assert row == {key: value for key, value in GOOD["winogrande"].items() if key != "qID"}


def test_the_label_of_hellaswag_is_a_text_on_the_hub(tmp_path: Path) -> None:
    first, second = read("hellaswag", tmp_path, GOOD["hellaswag"], {**GOOD["hellaswag"], "ctx_b": "", "label": 0})
    assert (first["label"], second["label"], second["ctx_b"]) == ("1", "0", "")
    assert first["endings"] == GOOD["hellaswag"]["endings"]


def test_rows_keep_their_order_and_blank_lines_are_none(tmp_path: Path) -> None:
    lines = [{**GOOD["rte"], "premise": f"line\u2028{number}"} for number in range(12)]
    rows = read("rte", tmp_path, "", *lines[:5], "  ", *lines[5:], "")
    assert [row["sentence1"] for row in rows] == [line["premise"] for line in lines]


def without(task: str, name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD[task].items() if key != name}


FIELDS = {
    "boolq": ["question", "passage", "label"],
    "rte": ["premise", "hypothesis", "label"],
    "hellaswag": ["activity_label", "ctx_a", "ctx_b", "endings", "label"],
    "winogrande": ["sentence", "option1", "option2", "answer"],
    "arc_easy": ["question", "choices", "gold"],
    "arc_challenge": ["question", "choices", "gold"],
    "openbookqa": ["query", "choices", "gold"],
}


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in FIELDS.items() for name in names])
def test_a_field_that_is_missing_or_of_another_kind_is_named(task: str, name: str, tmp_path: Path) -> None:
    file = LAYOUTS[task].file
    with pytest.raises(InputError) as missing:
        read(task, tmp_path, GOOD[task], "", without(task, name))
    assert f"{file}, line 3, '{name}': expected " in str(missing.value)
    assert ", but there is no such field; a line is {" in str(missing.value)
    for odd in (None, 1.5, {}, [1, 2], -1, 9, *(["\n"] if name != "ctx_b" else [])):
        with pytest.raises(InputError) as other:
            read(task, tmp_path, {**GOOD[task], name: odd})
        assert f"{file}, line 1, '{name}': expected " in str(other.value), odd
        assert f", but got {json.dumps(odd)}; a line is {{" in str(other.value), odd


@pytest.mark.parametrize(
    ("task", "name", "value", "expected"),
    [
        ("rte", "label", "neutral", 'expected "entailment" or "not_entailment", but got "neutral"'),
        ("rte", "label", 0, 'expected "entailment" or "not_entailment", but got 0'),
        ("boolq", "label", "yes", 'expected 1 or 0, but got "yes"'),
        ("boolq", "label", 2, "expected 1 or 0, but got 2"),
        ("winogrande", "answer", "", 'expected "1" or "2", but got ""'),
        ("winogrande", "answer", 1, 'expected "1" or "2", but got 1'),
        ("winogrande", "sentence", "No blank.", "expected a text with a blank (_) and words after it"),
        (
            "winogrande",
            "sentence",
            "At the end _ ",
            "expected a text with a blank (_) and words after it",
        ),
        ("arc_easy", "gold", 3, "expected the number of the right choice, 0 to 2, but got 3"),
        ("arc_easy", "gold", True, "expected the number of the right choice, 0 to 2, but got true"),
        ("arc_easy", "choices", ["one"], 'expected a list of at least 2 texts, but got ["one"]'),
        ("arc_easy", "choices", ["one", ""], "expected a list of texts, none of them empty"),
        ("hellaswag", "label", "1", 'expected the number of the right choice, 0 to 1, but got "1"'),
        ("openbookqa", "query", " ", 'expected a text, but got " "'),
    ],
)
def test_what_a_label_may_be_is_said(task: str, name: str, value: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(task, tmp_path, {**GOOD[task], name: value})
    assert f"zero-shot data {LAYOUTS[task].file}, line 1, '{name}': {expected}" in str(error.value)


@pytest.mark.parametrize("line", ["{", "[1]", "3", '"text"', '{"a": 1} 2', r'{"premise": "\ud83d"}'])
def test_a_line_that_is_no_json_object_is_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"rte_dev\.jsonl, line 2: expected a JSON object, but (it is not valid JSON \(.*\)|got .*); a line is {",
    ):
        read("rte", tmp_path, GOOD["rte"], line)


@pytest.mark.parametrize("content", [b"", b" \n\n", b'{"premise": "\xff"}'])
def test_a_file_without_text_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rte_dev.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"zero-shot data rte_dev\.jsonl"):
        LAYOUTS["rte"].read(tmp_path)


@pytest.mark.parametrize("task", GOOD)
def test_the_example_of_each_layout_is_itself_a_good_line(task: str, tmp_path: Path) -> None:
    example = LAYOUTS[task].example
    assert len(read(task, tmp_path, example)) == 1
    assert set(json.loads(example)) == set(FIELDS[task])
