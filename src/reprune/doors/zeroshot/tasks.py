"""The zero-shot tasks as lm-eval defines them: its own prompts, choices and metrics, on the Hub's rows or given ones.

Knows the harness's tasks; knows no files and no models. Imports the harness only when it is needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from reprune.errors import InputError, short
from reprune.model.quiet import quiet_logger, quiet_transformers
from reprune.planning.room import cache_of_the_hub, no_room
from reprune.planning.rows import quiet_reading

# The harness's folder of each task: reading these few takes a moment, reading those of all its tasks takes seconds.
_FOLDERS = {
    "boolq": "super_glue/boolq",
    "rte": "glue/rte",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "openbookqa": "openbookqa",
}


def require_harness() -> None:
    """Raise `InputError` if lm-eval, or what its Transformers backend imports, is not installed."""
    for module, package in (("lm_eval", "lm-eval"), ("accelerate", "accelerate")):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"zero-shot evaluation needs {package}; install it with: pip install 'reprune[eval]'")


@contextmanager
def quiet_harness() -> Iterator[None]:
    """A context without advice and progress bars of the harness and its libraries."""
    with quiet_logger("lm_eval"), quiet_reading(), quiet_transformers():
        yield


@final
@dataclass(frozen=True)
class Question:
    """One row as the harness asks it: requests for the likelihood of a continuation of a context."""

    row: Mapping[str, Any]
    requests: tuple[Any, ...]  # the harness's instances, whose arguments are (context, continuation)
    gold: int | str


@final
class Task:
    """One of the harness's tasks, with the rows that it is evaluated on."""

    def __init__(self, name: str, task: Any, limit: int | None) -> None:
        self.name = name
        self.split: str = task.config.test_split or task.config.validation_split
        self._task = task
        rows = task.eval_docs
        rows = rows.select(range(min(limit, len(rows)))) if limit is not None else rows
        self.questions = tuple(self._question(number, row) for number, row in enumerate(rows))

    def _question(self, number: int, row: Mapping[str, Any]) -> Question:
        context = self._task.fewshot_context(doc=row, num_fewshot=0)
        requests = self._task.construct_requests(doc=row, ctx=context, metadata=(self.name, number, 1))
        gold = self._task.doc_to_text(row) if self._task.multiple_input else self._task.doc_to_target(row)
        return Question(row, tuple(requests), gold)

    @property
    def requests(self) -> tuple[Any, ...]:
        """All requests, those of a question in order, question by question."""
        return tuple(request for question in self.questions for request in question.requests)

    @property
    def sha256(self) -> str:
        """The SHA-256, in hexadecimal, of all contexts, continuations and right answers, wherever the rows are from."""
        digest = hashlib.sha256()
        for question in self.questions:
            arguments = [list(request.args) for request in question.requests]
            digest.update(json.dumps([arguments, question.gold], ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    def metrics(self, answers: Sequence[tuple[float, bool]]) -> dict[str, list[float]]:
        """The harness's metrics, question by question, from the answers to `requests`, in their order."""
        values: dict[str, list[float]] = {}
        following = iter(answers)
        for question in self.questions:
            given = [next(following) for _ in question.requests]
            for metric, value in self._task.process_results(question.row, given).items():
                values.setdefault(metric, []).append(float(value))
        return values


def load_tasks(
    names: Sequence[str], rows: Mapping[str, Sequence[Mapping[str, Any]]] | None, limit: int | None
) -> tuple[Task, ...]:
    """The tasks of these names, with the first `limit` rows of each (None: all).

    `rows` has by name the rows that replace the Hub's data set, in its columns; with None, the Hub's are read.

    Raises:
        InputError: the Hub's rows cannot be read.
    """
    with quiet_harness():
        import lm_eval.tasks as harness

        if not hasattr(harness.TaskManager, "load"):
            raise InputError("this lm-eval is too old; install a newer one with: pip install -U 'reprune[eval]'")
        home = Path(harness.__file__).parent
        folders = sorted({str(home / _FOLDERS[name]) for name in names})
        manager = harness.TaskManager(include_path=folders, include_defaults=False)
        return tuple(Task(name, _load(manager, name, None if rows is None else rows[name]), limit) for name in names)


def _load(manager: Any, name: str, rows: Sequence[Mapping[str, Any]] | None) -> Any:
    if rows is not None:
        return _configured(manager, {"task": name, "custom_dataset": lambda **_: _splits(rows)})
    try:
        return _configured(manager, {"task": name})
    except Exception as error:  # from the Hub's client, `datasets`, or their HTTP libraries; also plain OSErrors
        if (full := no_room(error, *cache_of_the_hub())) is not None:
            raise full from None
        raise InputError(
            f"zero-shot task {name}: its data set cannot be read from the Hub ({short(error)}); go online, "
            "or give its rows in local files: --zero-shot-data FOLDER"
        ) from None


def _configured(manager: Any, changes: dict[str, Any]) -> Any:
    """A task with changes to its configuration, which the harness accepts from members of a group."""
    loaded = manager.load([{"group": "reprune", "task": [changes]}])
    return loaded["tasks"][changes["task"]]


def _splits(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A data set of these rows, whichever split is asked for."""
    from datasets import Dataset

    whole = Dataset.from_list(list(rows))
    return {"test": whole, "validation": whole, "train": whole.select(range(1))}  # only for few-shot examples
