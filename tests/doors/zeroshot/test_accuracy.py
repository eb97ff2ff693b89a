"""Zero-shot accuracies are those of the harness, and need no network if rows are local."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM

from reprune.doors.zeroshot import accuracy as door
from reprune.doors.zeroshot.accuracy import PAPER, TASKS, TaskScore, ZeroShot, zero_shot
from reprune.doors.zeroshot.rows import LAYOUTS
from reprune.doors.zeroshot.tasks import load_tasks, quiet_harness
from reprune.errors import InputError, NumericalError
from reprune.model.block import Precision
from reprune.model.checkpoint import Checkpoint
from reprune.model.whole import load_model
from tests import tiny
from tests.doors.zeroshot.test_likelihoods import build

WORDS = tiny.LICENCE.split()  # hundreds, independent of the Python version
COUNT = 12  # rows of each task


def some(start: int, count: int = 4) -> str:
    return " ".join(WORDS[start % 400 : start % 400 + count])


def lines(task: str) -> list[dict[str, Any]]:
    """Rows of a task in real words, in which every choice is right now and then."""
    rows: list[dict[str, Any]] = []
    for number in range(COUNT):
        at = 17 * number + sum(map(ord, task))
        choices = {"choices": [some(at + 5 * each, 1 + each) for each in range(3 + number % 2)], "gold": number % 3}
        rows.append(
            {
                "boolq": {"passage": some(at, 9), "question": some(at + 9), "label": number % 2},
                "rte": {
                    "premise": some(at, 8),
                    "hypothesis": some(at + 9),
                    "label": ["entailment", "not_entailment"][number % 2],
                },
                "hellaswag": {
                    "activity_label": some(at, 2),
                    "ctx_a": some(at, 8),
                    "ctx_b": some(at + 3, 1),
                    "endings": choices["choices"],
                    "label": choices["gold"],
                },
                "winogrande": {
                    "sentence": f"{some(at)} _ {some(at + 5)}.",
                    "option1": some(at, 1),
                    "option2": some(at + 9, 2),
                    "answer": "12"[number % 2],
                },
                "openbookqa": {"query": some(at, 6), **choices},
            }.get(task, {"question": some(at, 6) + "?", **choices})
        )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows of all tasks; tests must not change it."""
    folder = tmp_path_factory.mktemp("rows") / "zeroshot"
    folder.mkdir()
    for task, layout in LAYOUTS.items():
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines(task))
        (folder / layout.file).write_text(text, encoding="utf-8")
    return folder


def run(model: Path | str, tasks: Any, data: Path | None, **options: Any) -> ZeroShot:
    return zero_shot(model, tasks, data=data, device="cpu", precision="float32", **options)


@pytest.mark.parametrize("limit", [None, 5])
def test_accuracies_and_errors_are_those_of_the_harness(limit: int | None, llama: Path, data: Path) -> None:
    """The twin: the harness's own evaluation loop, model class and task objects."""
    result = run(llama, [PAPER], data, limit=limit)
    loaded = load_tasks(TASKS, {task: LAYOUTS[task].read(data) for task in TASKS}, None)
    with quiet_harness():
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        for task in loaded:
            task._task.set_config("num_fewshot", 0)
        twin = HFLM(AutoModelForCausalLM.from_pretrained(llama), tokenizer=tiny.tokenizer(), batch_size=3)
        found = evaluate(twin, {"tasks": {task.name: task._task for task in loaded}}, limit=limit)["results"]
    assert [task.task for task in result.tasks] == list(TASKS)
    for task in result.tasks:
        theirs = found[task.task]
        assert task.accuracy == theirs["acc,none"]
        assert task.standard_error == pytest.approx(theirs["acc_stderr,none"], rel=1e-12)
        assert task.accuracy_norm == theirs.get("acc_norm,none")
        if task.accuracy_norm is not None:
            assert task.standard_error_norm == pytest.approx(theirs["acc_norm_stderr,none"], rel=1e-12)
        assert task.examples == (limit or COUNT)
        assert task.metric == "acc"
    assert len({task.accuracy for task in result.tasks}) > 2, "the rows tell models apart"
    assert {task.task for task in result.tasks if task.accuracy_norm is None} == {"boolq", "rte", "winogrande"}
    assert result.mean == pytest.approx(sum(task.accuracy for task in result.tasks) / 7)


def test_a_record_says_all_that_decides_it(llama: Path, data: Path) -> None:
    result = run(llama, ["arc_easy", "boolq"], data, limit=4)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    (arc, boolq) = load_tasks(["arc_easy", "boolq"], {name: LAYOUTS[name].read(data) for name in TASKS}, 4)
    assert record == {
        "model": "llama",
        "fingerprint": Checkpoint(llama).fingerprint(),
        "precision": "float32",
        "weights_dtype": "float32",
        "limit": 4,
        "data": "zeroshot",
        "harness": f"lm-eval {importlib.metadata.version('lm_eval')}",
        "mean": result.mean,
        "tasks": {
            "arc_easy": {
                "metric": "acc",
                "accuracy": result.tasks[0].accuracy,
                "standard_error": result.tasks[0].standard_error,
                "examples": 4,
                "sha256": arc.sha256,
                "split": "test",
                "accuracy_norm": result.tasks[0].accuracy_norm,
                "standard_error_norm": result.tasks[0].standard_error_norm,
            },
            "boolq": {
                "metric": "acc",
                "accuracy": result.tasks[1].accuracy,
                "standard_error": result.tasks[1].standard_error,
                "examples": 4,
                "sha256": boolq.sha256,
                "split": "validation",
            },
        },
    }
    assert list(record["tasks"]) == ["arc_easy", "boolq"], "in the order asked"


def test_one_row_has_no_error(llama: Path, data: Path) -> None:
    (task,) = run(llama, ["arc_easy"], data, limit=1).tasks
    assert (task.examples, task.standard_error, task.standard_error_norm) == (1, None, None)


def test_the_mean_is_of_tasks_not_of_rows() -> None:
    tasks = tuple(TaskScore(name, "acc", value, 0.1, n, "", "test") for name, value, n in (("a", 1, 9), ("b", 0, 1)))
    assert ZeroShot("m", "", "float32", "float32", None, "hub", "", tasks).mean == 0.5


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ("boolq", ["boolq"]),
        ("rte, boolq", ["rte", "boolq"]),
        (["rte,arc_easy", "boolq", "rte"], ["rte", "arc_easy", "boolq"]),
        ([PAPER], list(TASKS)),
        (["rte", PAPER], ["rte", *(name for name in TASKS if name != "rte")]),
    ],
)
def test_tasks_are_each_run_once_in_the_order_asked(tasks: Any, names: list[str]) -> None:
    assert list(door._names(tasks)) == names


@pytest.mark.parametrize("tasks", [["hellaswog"], ["boolq", "mmlu"], [""], "boolq,,rte", ["Paper"]])
def test_a_task_that_is_not_known_is_refused_with_those_that_are(tasks: Any, llama: Path) -> None:
    with pytest.raises(InputError, match=r"no such task; expected boolq, rte, hellaswag, .*, or paper for all"):
        run(llama, tasks, None)


def test_no_task_is_refused(llama: Path) -> None:
    with pytest.raises(InputError, match="expected at least one task of boolq, "):
        run(llama, [], None)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_row_is_refused(limit: int, llama: Path, data: Path) -> None:
    with pytest.raises(InputError, match=f"--zero-shot-limit {limit}: expected at least 1"):
        run(llama, ["boolq"], data, limit=limit)


@pytest.mark.parametrize(("module", "package"), [("lm_eval", "lm-eval"), ("accelerate", "accelerate")])
def test_without_the_harness_the_extra_is_named(
    module: str, package: str, llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == module else find(name, *of))
    with pytest.raises(InputError, match=rf"needs {package}; install it with: pip install 'reprune\[eval\]'"):
        run(llama, ["boolq"], data)


@pytest.fixture
def part(data: Path, tmp_path: Path) -> Path:
    """A folder with the rows of two tasks and another file."""
    folder = tmp_path / "part"
    folder.mkdir()
    for task in ("rte", "openbookqa"):
        (folder / LAYOUTS[task].file).write_bytes((data / LAYOUTS[task].file).read_bytes())
    (folder / "notes.txt").write_text("mine")
    return folder


def test_of_the_paper_s_tasks_those_that_are_there_are_run_and_the_others_named(
    llama: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(part))
    said: list[str] = []
    result = run(llama, [PAPER], Path("~"), limit=3, notify=said.append)
    assert result.data == "part"
    assert [task.task for task in result.tasks] == ["rte", "openbookqa"]
    assert said == [
        "part has no boolq_dev.jsonl, hellaswag_val.jsonl, winogrande_dev.jsonl, arc_easy_test.jsonl, "
        "arc_challenge_test.jsonl: left out"
    ]


@pytest.mark.parametrize("tasks", [["boolq"], ["rte", "boolq"], [PAPER, "boolq"], ["boolq", PAPER]])
def test_a_task_that_is_named_must_be_there(tasks: list[str], llama: Path, part: Path) -> None:
    with pytest.raises(InputError) as error:
        run(llama, tasks, part)
    assert str(error.value).startswith(f"--zero-shot-data {part}: expected boolq_dev.jsonl")
    assert "but it has files for rte, openbookqa; add what is missing" in str(error.value)


def test_a_folder_without_any_task_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="but it has none of the tasks' files"):
        run(llama, [PAPER], tmp_path)
    with pytest.raises(InputError, match=r"no such folder; expected one with files such as boolq_dev\.jsonl"):
        run(llama, [PAPER], tmp_path / "none")


def test_a_bad_line_is_said_before_the_model_is_loaded(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (part / "rte_dev.jsonl").open("a") as file:
        file.write('\n{"premise": "a", "hypothesis": "b", "label": "maybe"}\n')
    monkeypatch.setattr(door, "load_model", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(door, "find_model", lambda *_, **__: pytest.fail("located"))
    with pytest.raises(InputError, match=rf"rte_dev\.jsonl, line {COUNT + 1}, 'label': expected .* but got \"maybe\""):
        run(part, ["rte"], part)


def test_prompts_that_are_cut_are_said(llama: Path, part: Path) -> None:
    long = {"premise": " ".join(WORDS[:300]), "hypothesis": "b", "label": "entailment"}
    (part / "rte_dev.jsonl").write_text(json.dumps(long), encoding="utf-8")
    said: list[str] = []
    run(llama, ["rte"], part, notify=said.append)
    assert said == [f"2 of 2 requests were cut at their start: llama takes {tiny.POSITIONS} tokens"]


def test_a_model_of_the_hub_is_called_by_its_id(
    llama: Path, part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--organization--name" / "snapshots" / (40 * "a")
    shutil.copytree(llama, cached)
    monkeypatch.setattr(door, "find_model", lambda *_, **__: cached)
    (part / "rte_dev.jsonl").write_text(
        json.dumps({"premise": " ".join(WORDS[:300]), "hypothesis": "b", "label": "entailment"}), encoding="utf-8"
    )
    said: list[str] = []
    result = run("organization/name", ["rte"], part, notify=said.append)  # the name of its folder is a commit's hash
    assert result.model == "organization/name"
    assert said == [f"2 of 2 requests were cut at their start: organization/name takes {tiny.POSITIONS} tokens"]


def test_a_model_that_is_run_as_the_harness_runs_it_has_products_in_float32(part: Path, tmp_path: Path) -> None:
    model = tiny.save("prophetnet", tmp_path / "model")
    said: list[str] = []
    asked = zero_shot(model, ["rte"], data=part, limit=3, device="cpu", precision="bfloat16", notify=said.append)
    assert asked == run(model, ["rte"], part, limit=3)
    assert asked.precision == "float32"
    assert "note: model is run by lm-eval's own loop, so its products are in float32" in said


@pytest.mark.parametrize(
    ("name", "dtype", "kept"),
    [
        ("llama", torch.bfloat16, ["bfloat16"]),
        ("llama", torch.float16, ["float32"]),  # the head multiplies them as they are
        ("mamba", torch.bfloat16, ["bfloat16", "float32"]),  # reads weights without running their linears
    ],
)
def test_weights_are_kept_in_the_precision_where_they_are_saved_in_it(
    name: str, dtype: torch.dtype, kept: list[str], part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(name).to(dtype).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    found: list[str] = []

    def load(folder: Path, device: torch.device, trust: bool, precision: Precision) -> Any:
        found.append(str(precision.products).removeprefix("torch."))
        return load_model(folder, device, trust, precision)

    monkeypatch.setattr(door, "load_model", load)
    asked = zero_shot(tmp_path / "model", ["rte"], data=part, limit=3, device="cpu", precision="bfloat16")
    assert (found, asked.precision) == (kept, "bfloat16")


def test_weights_are_of_the_dtype_that_they_are_saved_in(
    part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.build("llama").bfloat16().save_pretrained(tmp_path / "half")
    tiny.tokenizer().save_pretrained(tmp_path / "half")

    def locate(model: str, *, notify: Any) -> Path:
        notify("it was converted")
        return tmp_path / model

    monkeypatch.setattr(door, "find_model", locate)
    said: list[str] = []
    result = run("half", ["rte"], part, limit=1, notify=said.append)
    assert (result.weights_dtype, result.precision) == ("bfloat16", "float32")
    assert said == ["it was converted"]


def test_progress_is_of_requests(llama: Path, part: Path) -> None:
    done: list[tuple[int, int]] = []
    run(llama, ["rte", "openbookqa"], part, progress=lambda *now: done.append(now))
    of = 2 * COUNT + sum(len(line["choices"]) for line in lines("openbookqa"))
    assert done[-1] == (of, of)
    assert len(done) > 1


def test_a_damaged_model_is_an_error(part: Path, tmp_path: Path) -> None:
    model = tiny.build("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(NumericalError, match="log-likelihoods are NaN"):
        run(tmp_path / "model", ["rte"], part)


def test_a_hub_that_cannot_be_reached_is_said(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError) as error:
        run(llama, ["rte", "boolq"], None)
    assert str(error.value).startswith("zero-shot task rte: its data set cannot be read from the Hub (")
    assert str(error.value).endswith("or give its rows in local files: --zero-shot-data FOLDER")


_seen: list[str] | None = None  # what this process did while it was watched


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen"):
        _seen.append(f"{event} {args[1:]}")
        raise OSError("there is no network")
    writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writing or event in ("os.mkdir", "os.rename", "os.remove")) and args[0] != os.devnull:
        _seen.append(f"{event} {args[0]}")


@contextmanager
def watching() -> Iterator[list[str]]:
    """What this process writes, and what it tries to connect to; sockets are blocked."""
    global _seen
    sys.addaudithook(_watch)  # it cannot be removed, but does nothing unless `_seen` is set
    _seen = found = []
    try:
        yield found
    finally:
        _seen = None


def test_local_rows_need_no_network_and_nothing_is_written(
    llama: Path,
    data: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(llama, ["rte"], data, limit=1)  # so that all is imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the libraries may try to reach the Hub
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    capfd.readouterr()
    with watching() as seen:
        assert len(run(llama, [PAPER], data, limit=2).tasks) == 7
        assert (*capfd.readouterr(), caplog.records) == ("", "", [])
        assert seen == []
        with pytest.raises(OSError, match="there is no network"):  # shows that a connection would be seen
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        (data.parent / "mine").touch()
        assert [each.partition(" ")[0] for each in seen] == ["socket.getaddrinfo", "open"]
