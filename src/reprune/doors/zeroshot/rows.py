"""Local rows of the zero-shot tasks: JSON lines, turned into the columns of the Hub's data sets.

Knows files and their fields; knows nothing of prompts, of models or of the harness that reads the columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from reprune.errors import InputError
from reprune.files.wellformed import read_json
from reprune.planning.textfiles import read_text

Row = dict[str, Any]


@final
@dataclass(frozen=True)
class Line:
    """One line of a file: an object of fields, and its place, to name if one of them is wrong."""

    place: str
    example: str
    fields: Mapping[str, Any]

    def text(self, name: str, *, empty: bool = False) -> str:
        """A field that is a text; `empty` allows one of only white space."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.wrong(name, "a text")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that is a list of texts to choose from."""
        value = self.fields.get(name)
        if not isinstance(value, list) or len(value) < 2:
            raise self.wrong(name, "a list of at least 2 texts")
        if not all(isinstance(each, str) and each.strip() for each in value):
            raise self.wrong(name, "a list of texts, none of them empty")
        return value

    def index(self, name: str, of: int) -> int:
        """A field that is the index of the right one among `of`, from 0."""
        value = self.fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < of:
            raise self.wrong(name, f"the number of the right choice, 0 to {of - 1}")
        return value

    def label(self, name: str, labels: Mapping[str | int, Any]) -> Any:
        """What the label in a field stands for."""
        value = self.fields.get(name)
        if not isinstance(value, str | int) or value not in labels:
            raise self.wrong(name, " or ".join(json.dumps(each) for each in labels))
        return labels[value]

    def wrong(self, name: str, expected: str) -> InputError:
        """The error for a field that is not what it should be."""
        got = f"got {json.dumps(self.fields[name]):.60}" if name in self.fields else "there is no such field"
        return InputError(f"{self.place}, {name!r}: expected {expected}, but {got}; a line is {self.example}")


@final
@dataclass(frozen=True)
class Layout:
    """The file that a task's rows come from, what a line of it looks like, and its columns on the Hub."""

    file: str
    example: str
    columns: Callable[[Line], Row]

    def read(self, folder: Path) -> list[Row]:
        """All rows of the file, in order, as the Hub's data set has them.

        Raises:
            InputError: the file cannot be read, or a line is not as it should be; names file, line and field.
        """
        text = read_text(folder / self.file, f"zero-shot data {self.file}")
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [self.columns(self._line(number, line)) for number, line in lines]

    def _line(self, number: int, line: str) -> Line:
        place = f"zero-shot data {self.file}, line {number}"
        try:
            fields = read_json(line)
            json.dumps(fields, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which is no text
        except ValueError as error:
            raise InputError(
                f"{place}: expected a JSON object, but it is not valid JSON ({error}); a line is {self.example}"
            ) from None
        if not isinstance(fields, dict):
            raise InputError(f"{place}: expected a JSON object, but got {line:.60}; a line is {self.example}")
        return Line(place, self.example, fields)


def _choices(line: Line) -> Row:
    """The choices and the key of the right one, as the ARC and OpenBookQA data sets have them."""
    texts = line.texts("choices")
    keys = [chr(ord("A") + number) for number in range(len(texts))]
    return {"choices": {"text": texts, "label": keys}, "answerKey": keys[line.index("gold", len(texts))]}


def _arc(line: Line) -> Row:
    return {"question": line.text("question"), **_choices(line)}


def _openbookqa(line: Line) -> Row:
    return {"question_stem": line.text("query"), **_choices(line)}


def _boolq(line: Line) -> Row:
    label = line.label("label", {1: 1, 0: 0})
    return {"question": line.text("question"), "passage": line.text("passage"), "label": label}


def _rte(line: Line) -> Row:
    label = line.label("label", {"entailment": 0, "not_entailment": 1})
    return {"sentence1": line.text("premise"), "sentence2": line.text("hypothesis"), "label": label}


def _winogrande(line: Line) -> Row:
    sentence = line.text("sentence")
    if not sentence.partition("_")[2].strip():
        raise line.wrong("sentence", "a text with a blank (_) and words after it")
    answer = line.label("answer", {"1": "1", "2": "2"})
    return {"sentence": sentence, "option1": line.text("option1"), "option2": line.text("option2"), "answer": answer}


def _hellaswag(line: Line) -> Row:
    endings = line.texts("endings")
    return {
        "activity_label": line.text("activity_label"),
        "ctx_a": line.text("ctx_a"),
        "ctx_b": line.text("ctx_b", empty=True),
        "endings": endings,
        "label": str(line.index("label", len(endings))),
    }


_QUESTION = '{"question": "...", "choices": ["...", "..."], "gold": 0}'

LAYOUTS: Mapping[str, Layout] = {
    "boolq": Layout("boolq_dev.jsonl", '{"passage": "...", "question": "...", "label": 1}', _boolq),
    "rte": Layout("rte_dev.jsonl", '{"premise": "...", "hypothesis": "...", "label": "entailment"}', _rte),
    "hellaswag": Layout(
        "hellaswag_val.jsonl",
        '{"activity_label": "...", "ctx_a": "...", "ctx_b": "...", "endings": ["...", "..."], "label": 0}',
        _hellaswag,
    ),
    "winogrande": Layout(
        "winogrande_dev.jsonl",
        '{"sentence": "... _ ...", "option1": "...", "option2": "...", "answer": "1"}',
        _winogrande,
    ),
    "arc_easy": Layout("arc_easy_test.jsonl", _QUESTION, _arc),
    "arc_challenge": Layout("arc_challenge_test.jsonl", _QUESTION, _arc),
    "openbookqa": Layout("openbookqa_test.jsonl", _QUESTION.replace("question", "query"), _openbookqa),
}
"""The tasks by name, in the order of the paper's tables."""
