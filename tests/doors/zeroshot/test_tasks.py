"""Local rows are asked in exactly the words in which the harness asks the Hub's rows of the same content."""

from __future__ import annotations

import errno
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import pytest
from datasets import Dataset, DatasetDict

from reprune.doors.zeroshot.rows import LAYOUTS
from reprune.doors.zeroshot.tasks import Task, load_tasks, quiet_harness
from reprune.errors import InputError
from tests.doors.zeroshot.hub import ASKED, HUB


def write(folder: Path, times: int = 1) -> Path:
    """A folder with the local lines of all tasks, repeated `times` times."""
    folder.mkdir(exist_ok=True)
    for name, (_, _, _, rows) in HUB.items():
        lines = [json.dumps(local, ensure_ascii=False) for local, _ in rows] * times
        (folder / LAYOUTS[name].file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The Hub's data sets, with a row in other splits that must not be read; the list has what was asked for."""
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
    """The folder of each of the harness's tasks that has one of our names, wherever it is."""
    with quiet_harness():
        import lm_eval.tasks as harness
    found: dict[str, list[Path]] = {}
    for path in Path(harness.__file__).parent.rglob("*.yaml"):
        for name in re.findall(r"^task: (\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(path.parent)
    assert all(len(found[name]) == 1 for name in HUB)
    return {name: found[name][0] for name in HUB}


def own(name: str) -> Any:
    """A task as the harness loads it, with nothing of ours except the Hub's rows."""
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
    task = local(write(tmp_path), "openbookqa", 1)  # choices: lions, humans, bunnies, grass; the third is right
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


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (OSError(errno.ENOSPC, "full"), r"No space left on device.*set HF_HOME to a folder with room"),
        (MemoryError("malloc of size 9 failed"), "malloc of size 9 failed"),
    ],
)
def test_what_this_machine_lacks_is_not_said_of_the_hub(
    lacking: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=lacking))
    with pytest.raises(type(lacking), match=said):
        load_tasks(["boolq"], None, None)


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
