"""Local rows are put to a model in the very words in which the harness puts the Hub's rows of the same content."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from reprune.doors.zeroshot.rows import LAYOUTS
from reprune.doors.zeroshot.tasks import Task, load_tasks, quiet_harness
from reprune.errors import InputError

TEXT = Value("string")
CHOICES = {"text": Sequence(TEXT), "label": Sequence(TEXT)}

# Of each task: where it is on the Hub, its split, the Hub's features, and rows (as local lines have them, as the Hub).
HUB: dict[str, tuple[tuple[str, str | None], str, Features, list[tuple[dict[str, Any], dict[str, Any]]]]] = {
    "boolq": (
        ("aps/super_glue", "boolq"),
        "validation",
        Features(
            {"question": TEXT, "passage": TEXT, "idx": Value("int32"), "label": ClassLabel(names=["False", "True"])}
        ),
        [
            (
                {"question": "is a tomato a fruit", "passage": "Tomato -- It is a berry.", "idx": 0, "label": True},
                {"question": "is a tomato a fruit", "passage": "Tomato -- It is a berry.", "idx": 0, "label": 1},
            ),
            (
                {"question": "do {{ stones }} float", "passage": "A “stone”\nsinks.", "idx": 1, "label": False},
                {"question": "do {{ stones }} float", "passage": "A “stone”\nsinks.", "idx": 1, "label": 0},
            ),
        ],
    ),
    "rte": (
        ("nyu-mll/glue", "rte"),
        "validation",
        Features(
            {
                "sentence1": TEXT,
                "sentence2": TEXT,
                "label": ClassLabel(names=["entailment", "not_entailment"]),
                "idx": Value("int32"),
            }
        ),
        [
            (
                {"premise": "It rains in Rome.", "hypothesis": "Rome is dry.", "label": "not_entailment", "idx": 7},
                {"sentence1": "It rains in Rome.", "sentence2": "Rome is dry.", "label": 1, "idx": 7},
            ),
            (
                {"premise": 'He said "no".', "hypothesis": "He spoke.", "label": "entailment", "idx": 8},
                {"sentence1": 'He said "no".', "sentence2": "He spoke.", "label": 0, "idx": 8},
            ),
        ],
    ),
    "hellaswag": (
        ("Rowan/hellaswag", None),
        "validation",
        Features(
            {
                "ind": Value("int32"),
                "activity_label": TEXT,
                "ctx_a": TEXT,
                "ctx_b": TEXT,
                "ctx": TEXT,
                "endings": Sequence(TEXT),
                "source_id": TEXT,
                "split": TEXT,
                "split_type": TEXT,
                "label": TEXT,
            }
        ),
        [
            (
                {
                    "ind": 24,
                    "activity_label": "Roof shingle removal",
                    "ctx_a": "A man is sitting on a roof.",
                    "ctx_b": "he",
                    "ctx": "A man is sitting on a roof. he",
                    "endings": ["is using wrap.", "is ripping  tiles [substeps] off.", "sings.", "starts pulling."],
                    "label": 3,
                },
                {
                    "ind": 24,
                    "activity_label": "Roof shingle removal",
                    "ctx_a": "A man is sitting on a roof.",
                    "ctx_b": "he",
                    "ctx": "A man is sitting on a roof. he",
                    "endings": ["is using wrap.", "is ripping  tiles [substeps] off.", "sings.", "starts pulling."],
                    "source_id": "activitynet~v_-JhWjGDPHMY",
                    "split": "val",
                    "split_type": "indomain",
                    "label": "3",
                },
            ),
            (
                {
                    "ind": 25,
                    "activity_label": "Home and Garden",
                    "ctx_a": "[header] How to boil eggs [title] Take a pot. [step] Fill it.",
                    "ctx_b": "",
                    "ctx": "[header] How to boil eggs [title] Take a pot. [step] Fill it.",
                    "endings": ["Wait. [title] Eat.", "Run.", "Sleep.", "Sing."],
                    "label": 0,
                },
                {
                    "ind": 25,
                    "activity_label": "Home and Garden",
                    "ctx_a": "[header] How to boil eggs [title] Take a pot. [step] Fill it.",
                    "ctx_b": "",
                    "ctx": "[header] How to boil eggs [title] Take a pot. [step] Fill it.",
                    "endings": ["Wait. [title] Eat.", "Run.", "Sleep.", "Sing."],
                    "source_id": "wikihow~1",
                    "split": "val",
                    "split_type": "zeroshot",
                    "label": "0",
                },
            ),
        ],
    ),
    "winogrande": (
        ("allenai/winogrande", "winogrande_xl"),
        "validation",
        Features({"sentence": TEXT, "option1": TEXT, "option2": TEXT, "answer": TEXT}),
        [
            (
                {
                    "qID": "3-2",
                    "sentence": "Ann beat Bea, so _ won.",
                    "option1": "Ann",
                    "option2": "Bea",
                    "answer": "1",
                },
                {"sentence": "Ann beat Bea, so _ won.", "option1": "Ann", "option2": "Bea", "answer": "1"},
            ),
            (
                {"qID": "3-1", "sentence": "_ 's hat fell.", "option1": "the man", "option2": "a tree", "answer": "2"},
                {"sentence": "_ 's hat fell.", "option1": "the man", "option2": "a tree", "answer": "2"},
            ),
        ],
    ),
    **{
        name: (
            ("allenai/ai2_arc", config),
            "test",
            Features({"id": TEXT, "question": TEXT, "choices": CHOICES, "answerKey": TEXT}),
            [
                (
                    {"id": "M_1", "question": "What falls?", "choices": ["Rain.", "The sun.", "Both."], "gold": 0},
                    {
                        "id": "M_1",
                        "question": "What falls?",
                        "choices": {"text": ["Rain.", "The sun.", "Both."], "label": ["A", "B", "C"]},
                        "answerKey": "A",
                    },
                ),
                (
                    {"id": "N_2", "question": "How many\nlegs?", "choices": ["1", "2", "4", "6", "None"], "gold": 3},
                    {
                        "id": "N_2",
                        "question": "How many\nlegs?",
                        "choices": {"text": ["1", "2", "4", "6", "None"], "label": ["1", "2", "3", "4", "5"]},
                        "answerKey": "4",
                    },
                ),
            ],
        )
        for name, config in (("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge"))
    },
    "openbookqa": (
        ("allenai/openbookqa", "main"),
        "test",
        Features({"id": TEXT, "question_stem": TEXT, "choices": CHOICES, "answerKey": TEXT}),
        [
            (
                {"query": "Predators eat", "choices": ["lions", "humans", "bunnies", "grass"], "gold": 2},
                {
                    "id": "8-343",
                    "question_stem": "Predators eat",
                    "choices": {"text": ["lions", "humans", "bunnies", "grass"], "label": ["A", "B", "C", "D"]},
                    "answerKey": "C",
                },
            ),
            (
                {
                    "query": "Fog is likely around: ",
                    "choices": ["a marsh", "a tundra", "plains", "a desert"],
                    "gold": 0,
                },
                {
                    "id": "1129",
                    "question_stem": "Fog is likely around: ",
                    "choices": {"text": ["a marsh", "a tundra", "plains", "a desert"], "label": ["A", "B", "C", "D"]},
                    "answerKey": "A",
                },
            ),
        ],
    ),
}

# Written by hand: what is asked of the first row of each task, and the right answer.
ASKED: dict[str, tuple[list[tuple[str, str]], int]] = {
    "boolq": (
        [
            ("Tomato -- It is a berry.\nQuestion: is a tomato a fruit?\nAnswer:", " no"),
            ("Tomato -- It is a berry.\nQuestion: is a tomato a fruit?\nAnswer:", " yes"),
        ],
        1,
    ),
    "rte": (
        [
            ("It rains in Rome.\nQuestion: Rome is dry. True or False?\nAnswer:", " True"),
            ("It rains in Rome.\nQuestion: Rome is dry. True or False?\nAnswer:", " False"),
        ],
        1,
    ),
    "hellaswag": (
        [
            ("Roof shingle removal: A man is sitting on a roof. He", " is using wrap."),
            ("Roof shingle removal: A man is sitting on a roof. He", " is ripping tiles off."),
            ("Roof shingle removal: A man is sitting on a roof. He", " sings."),
            ("Roof shingle removal: A man is sitting on a roof. He", " starts pulling."),
        ],
        3,
    ),
    "winogrande": ([("Ann beat Bea, so Ann", " won."), ("Ann beat Bea, so Bea", " won.")], 0),
    "arc_easy": ([("Question: What falls?\nAnswer:", f" {each}") for each in ("Rain.", "The sun.", "Both.")], 0),
    "arc_challenge": ([("Question: What falls?\nAnswer:", f" {each}") for each in ("Rain.", "The sun.", "Both.")], 0),
    "openbookqa": ([("Predators eat", f" {each}") for each in ("lions", "humans", "bunnies", "grass")], 2),
}


def write(folder: Path, times: int = 1) -> Path:
    """A folder with the local lines of all tasks, one after the other, over and over."""
    folder.mkdir(exist_ok=True)
    for name, (_, _, _, rows) in HUB.items():
        lines = [json.dumps(local, ensure_ascii=False) for local, _ in rows] * times
        (folder / LAYOUTS[name].file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The Hub's data sets, with a row in the other splits that must not be read; says what was asked of it."""
    asked: list[tuple[str, str | None]] = []

    def load_dataset(path: str, name: str | None = None, **_: Any) -> DatasetDict:
        asked.append((path, name))
        (split, features, rows), *_others = [each[1:] for each in HUB.values() if each[0] == (path, name)]
        whole = Dataset.from_list([row for _, row in rows], features=features)
        last = whole.select([len(whole) - 1])
        return DatasetDict({"train": last, "validation": last, "test": last, split: whole})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@cache
def homes() -> dict[str, Path]:
    """The folder of each of the harness's tasks that has a name of ours, wherever it is."""
    with quiet_harness():
        import lm_eval.tasks as harness
    found: dict[str, list[Path]] = {}
    for path in Path(harness.__file__).parent.rglob("*.yaml"):
        for name in re.findall(r"^task: (\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(path.parent)
    assert all(len(found[name]) == 1 for name in HUB)
    return {name: found[name][0] for name in HUB}


def own(name: str) -> Any:
    """A task as the harness loads it, with nothing of ours but the Hub's rows."""
    home = homes()[name]
    with quiet_harness():
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=home, include_defaults=False).load([name])["tasks"][name]


def local(folder: Path, name: str, limit: int | None = None) -> Task:
    (task,) = load_tasks([name], {name: LAYOUTS[name].read(folder)}, limit)
    return task


def arguments(task: Task) -> list[list[tuple[str, str]]]:
    return [[request.args for request in question.requests] for question in task.questions]


@pytest.mark.parametrize("name", HUB)
def test_prompts_choices_and_right_answers_are_the_harness_s_own(
    name: str, hub: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    ours = local(write(tmp_path), name)
    assert not hub, "local rows ask nothing of the Hub"
    theirs = own(name)
    assert hub == [HUB[name][0]]
    with quiet_harness():
        theirs.build_all_requests()
    rows = list(theirs.eval_docs)
    assert len(rows) == len(ours.questions) == 2
    for number, (row, question) in enumerate(zip(rows, ours.questions, strict=True)):
        mine = ours._task
        assert mine.doc_to_text(question.row) == theirs.doc_to_text(row)
        assert mine.doc_to_target(question.row) == theirs.doc_to_target(row)
        assert mine.doc_to_choice(question.row) == theirs.doc_to_choice(row)
        instances = [instance for instance in theirs.instances if instance.doc_id == number]
        assert [request.args for request in question.requests] == [instance.args for instance in instances]
        assert [request.idx for request in question.requests] == list(range(len(instances)))
        assert all(request.doc_id == number for request in question.requests)
    assert ours.split == HUB[name][1]
    assert {**mine.dump_config(), "custom_dataset": None} == {**theirs.dump_config(), "custom_dataset": None}


@pytest.mark.parametrize("name", HUB)
def test_the_first_row_is_asked_in_these_words(name: str, tmp_path: Path) -> None:
    task = local(write(tmp_path), name)
    assert (arguments(task)[0], task.questions[0].gold) == ASKED[name]


def test_the_brackets_of_hellaswag_go(tmp_path: Path) -> None:
    asked = arguments(local(write(tmp_path), "hellaswag"))[1]
    context = "Home and Garden: How to boil eggs. Take a pot. Fill it."
    assert asked == [(context, f" {ending}") for ending in ("Wait.. Eat.", "Run.", "Sleep.", "Sing.")]


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub_and_local_rows_have_one_hash(
    name: str, hub: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    (theirs,) = load_tasks([name], None, None)
    assert hub == [HUB[name][0]]
    ours = local(write(tmp_path), name)
    assert (theirs.sha256, theirs.split, arguments(theirs)) == (ours.sha256, ours.split, arguments(ours))
    assert len(ours.sha256) == 64
    assert ours.sha256 != local(tmp_path, name, 1).sha256


@pytest.mark.parametrize("name", ["boolq", "winogrande", "arc_easy"])
def test_another_right_answer_is_another_hash(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    before = local(folder, name)
    file = folder / LAYOUTS[name].file
    changes = {"boolq": ("true", "false"), "winogrande": ('"answer": "1"', '"answer": "2"'), "arc_easy": ("0}", "1}")}
    file.write_text(file.read_text(encoding="utf-8").replace(*changes[name]), encoding="utf-8")
    after = local(folder, name)
    assert arguments(after) == arguments(before)
    assert after.sha256 != before.sha256


@pytest.mark.parametrize("name", ["hellaswag", "winogrande", "arc_easy"])
@pytest.mark.parametrize("limit", [1, 3, 6, 7])
def test_a_limit_is_of_rows_from_the_start(name: str, limit: int, hub: list[Any], tmp_path: Path) -> None:
    folder = write(tmp_path, times=3)
    whole = arguments(local(folder, name))
    assert len(whole) == 6
    assert arguments(local(folder, name, limit)) == whole[:limit]
    (theirs,) = load_tasks([name], None, limit)
    assert arguments(theirs) == whole[: min(limit, 2)]


@pytest.mark.parametrize("name", HUB)
def test_the_answer_of_the_highest_likelihood_counts(name: str, tmp_path: Path) -> None:
    task = local(write(tmp_path), name)
    right = {"winogrande": [0, 1], "hellaswag": [3, 0], "arc_easy": [0, 3], "arc_challenge": [0, 3]}
    golds = right.get(name) or [question.gold for question in task.questions]
    answers = []
    for question, gold in zip(task.questions, golds, strict=True):
        answers += [(-1.0 if index == gold else -2.0, False) for index in range(len(question.requests))]
    assert task.metrics(answers)["acc"] == [1.0, 1.0]
    answers[golds[0]] = (-3.0, False)
    assert task.metrics(answers)["acc"] == [0.0, 1.0]


def test_normalized_accuracy_is_of_the_likelihood_a_character(tmp_path: Path) -> None:
    task = local(write(tmp_path), "openbookqa", 1)  # lions, humans, bunnies, grass: the third is right
    answers = [(-10.0 * len(each), False) for each in ("lions", "humans")] + [(-66.0, False), (-49.9, False)]
    assert task.metrics(answers) == {"acc": [0.0], "acc_norm": [1.0]}


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'aps/super_glue'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError) as error:
        load_tasks(["boolq"], None, None)
    said = str(error.value)
    assert said.startswith("zero-shot task boolq: its data set cannot be read from the Hub (ConnectionError: ")
    assert said.endswith("go online, or give its rows in local files: --zero-shot-data FOLDER")
    assert "\n" not in said


def test_a_harness_that_is_too_old_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet_harness():
        from lm_eval.tasks import TaskManager

    monkeypatch.delattr(TaskManager, "load")
    with pytest.raises(InputError, match=r"too old; install a newer one with: pip install -U 'reprune\[eval\]'"):
        local(write(tmp_path), "rte")


def test_the_harness_s_own_mean_error_is_ours() -> None:
    with quiet_harness():
        from lm_eval.api.metrics import mean_stderr
    from reprune.doors.zeroshot.accuracy import mean_and_error

    for right, count in ((0, 2), (1, 2), (3, 10), (277, 1000), (5, 5)):
        values = [1.0] * right + [0.0] * (count - right)
        mean, error = mean_and_error(values)
        share = right / count
        assert mean == pytest.approx(share)
        assert error == pytest.approx(math.sqrt(share * (1 - share) / (count - 1)))
        assert error == pytest.approx(mean_stderr(values))
    assert mean_and_error([1.0]) == (1.0, None)
