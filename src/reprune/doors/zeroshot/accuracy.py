"""Zero-shot accuracy of a model, dense or sparse, on the paper's seven tasks, as lm-eval measures it.

Brings together a model, the harness's tasks and the rows they are put on; knows no prompts and no columns.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from reprune.doors.devices import DTYPES, in_precision, settle_device
from reprune.doors.found import find_model
from reprune.doors.zeroshot.rows import LAYOUTS, Row
from reprune.doors.zeroshot.tasks import Task, load_tasks, quiet_harness, require_harness
from reprune.errors import InputError
from reprune.files.local import local_path
from reprune.files.readable import is_file_there
from reprune.model.block import Precision
from reprune.model.checkpoint import Checkpoint
from reprune.model.full_speed import full_speed
from reprune.model.undisturbed import undisturbed
from reprune.model.whole import collect_models, load_model, weights_dtype
from reprune.planning.paths import local_name
from reprune.planning.tokenizer import load_tokenizer

TASKS = tuple(LAYOUTS)
PAPER = "paper"  # the name of all of them
_METRIC = "acc"  # the paper's: the answer is the choice of the highest likelihood, whatever its length
_NORMALIZED = "acc_norm"  # the choice of the highest likelihood per character


@final
@dataclass(frozen=True)
class TaskScore:
    """A model's accuracy on one task, with all that decides it."""

    task: str
    metric: str  # of the harness
    accuracy: float
    standard_error: float | None  # None for a single row
    examples: int
    sha256: str  # of all prompts, choices and right answers
    split: str
    accuracy_norm: float | None = None  # None if the harness has no such metric for the task
    standard_error_norm: float | None = None

    def record(self) -> dict[str, Any]:
        """All fields except the task's name, for JSON; without normalized accuracy if there is none."""
        entries = {key: value for key, value in vars(self).items() if key != "task"}
        if self.accuracy_norm is None:
            del entries["accuracy_norm"], entries["standard_error_norm"]
        return entries


@final
@dataclass(frozen=True)
class ZeroShot:
    """A model's zero-shot accuracies, with all that decides them, so that no two are compared by mistake."""

    model: str
    fingerprint: str  # of the model's configuration and weights
    precision: str  # of the products
    weights_dtype: str  # in which the weights are saved
    limit: int | None  # rows of each task, from its start; None is all
    data: str  # the name of the folder that rows came from, or "hub"
    harness: str
    tasks: tuple[TaskScore, ...]

    @property
    def mean(self) -> float:
        """The mean of the tasks' accuracies."""
        return sum(task.accuracy for task in self.tasks) / len(self.tasks)

    def record(self) -> dict[str, Any]:
        """All fields, for JSON."""
        whole = {key: value for key, value in vars(self).items() if key != "tasks"}
        return {**whole, "mean": self.mean, "tasks": {task.task: task.record() for task in self.tasks}}


@undisturbed()
@full_speed()
def zero_shot(
    model: str | os.PathLike[str],
    tasks: str | Sequence[str],
    *,
    data: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
    notify: Callable[[str], None] = lambda text: None,
) -> ZeroShot:
    """The zero-shot accuracy of a model, with lm-eval's own prompts, choices and metrics.

    Args:
        model: a local folder (a result of `prune` is one), a Hub id, or a .gguf file.
        tasks: names among `TASKS`, or "paper" for all of them; commas may separate names.
        data: a folder of local JSON lines, in place of the Hub's data sets; nothing then needs a network.
        limit: the number of rows of each task, from the start; by default all.
        device, precision: as in a recipe.
        progress: called with the number of requests (a question with one of its choices) that are done, and of all.
        notify: called with notes on tasks of "paper" that the folder lacks, and on prompts that are cut.

    Raises:
        InputError: lm-eval is not installed, or the model, a task or its rows cannot be used.
        NumericalError: the model's likelihoods are not numbers.
    """
    loaded = open_tasks(tasks, data=data, limit=limit, notify=notify)
    where = settle_device(device)
    folder = find_model(model, notify=notify)
    tokenizer = load_tokenizer(folder, trust_remote_code)
    saved = weights_dtype(folder, trust_remote_code)
    with quiet_harness():
        from reprune.doors.zeroshot.likelihoods import Likelihoods

        def opened(products: str, kept: str) -> Any:
            network = load_model(folder, torch.device(where), trust_remote_code, Precision(DTYPES[kept]))
            return Likelihoods(network, tokenizer, Precision(DTYPES[products]), progress)

        def answered(products: str) -> tuple[str, Any, Any]:
            asked = [one for task in loaded for one in task.requests]
            # The head multiplies in float32: weights are kept in half precision only if they are saved in it.
            kept = products if products == saved else "float32"
            likelihoods = opened(products, kept)
            if likelihoods.exact and kept != "float32":  # the harness's own loop needs float32 weights
                del likelihoods
                collect_models()
                likelihoods = opened(products, "float32")
            return products, likelihoods, likelihoods.loglikelihood(asked, disable_tqdm=True)

        products, likelihoods, answers = in_precision(precision, where, answered, notify)
    name = local_name(model, folder)
    if likelihoods.exact and products != "float32":
        products = "float32"
        notify(f"note: {name} is run by lm-eval's own loop, so its products are in float32")
    if likelihoods.cut:
        taken = f"{name} takes {likelihoods.max_length} tokens"
        notify(f"{likelihoods.cut} of {len(answers)} requests were cut at their start: {taken}")
    following = iter(answers)
    return ZeroShot(
        model=name,
        fingerprint=Checkpoint(folder).fingerprint(),
        precision=products,
        weights_dtype=saved,
        limit=limit,
        data="hub" if data is None else local_path(data).resolve().name,
        harness=f"lm-eval {importlib.metadata.version('lm_eval')}",
        tasks=tuple(_score(task, [next(following) for _ in task.requests]) for task in loaded),
    )


def open_tasks(
    tasks: str | Sequence[str], *, data: str | os.PathLike[str] | None, limit: int | None, notify: Callable[[str], None]
) -> tuple[Task, ...]:
    """The tasks on which `zero_shot` with the same arguments would measure a model, with their rows.

    Raises:
        InputError: lm-eval is not installed, or a task or its rows cannot be used.
    """
    names, rows = _asked(tasks, data, limit, notify)
    return load_tasks(names, rows, limit)


def check_tasks(tasks: str | Sequence[str], *, data: str | os.PathLike[str] | None, limit: int | None) -> None:
    """Raise the `InputError` that `open_tasks` would, as far as that can be told without a network."""
    _asked(tasks, data, limit, lambda text: None)


def _asked(
    tasks: str | Sequence[str], data: str | os.PathLike[str] | None, limit: int | None, notify: Callable[[str], None]
) -> tuple[list[str], Mapping[str, Sequence[Row]] | None]:
    """The names of the tasks that will be run, and their rows if these are local."""
    names = _names(tasks)
    if limit is not None and limit < 1:
        raise InputError(f"--zero-shot-limit {limit}: expected at least 1.")
    require_harness()
    if data is None:
        return list(names), None
    rows = _local_rows(local_path(data), names, notify)
    return list(rows), rows


def _names(tasks: str | Sequence[str]) -> dict[str, bool]:
    """The tasks asked for, each once, in order; True for those that were named themselves, not through "paper"."""
    asked = [name.strip() for item in ([tasks] if isinstance(tasks, str) else tasks) for name in item.split(",")]
    names: dict[str, bool] = {}
    for name in asked:
        if name != PAPER and name not in TASKS:
            raise InputError(f"--zero-shot {name}: no such task; expected {', '.join(TASKS)}, or {PAPER} for all.")
        for one in TASKS if name == PAPER else (name,):
            names[one] = names.get(one, False) or name != PAPER
    if not names:
        raise InputError(f"--zero-shot: expected at least one task of {', '.join(TASKS)}, or {PAPER} for all.")
    return names


def _local_rows(folder: Path, names: Mapping[str, bool], notify: Callable[[str], None]) -> dict[str, list[Row]]:
    """The rows of the tasks whose file is in the folder; raises `InputError` if a task named itself has none."""
    called = f"--zero-shot-data {folder}"
    files = {name: folder / _file(name) for name in TASKS}
    there = [name for name, file in files.items() if is_file_there(file, called)]
    if not folder.is_dir():
        raise InputError(f"{called}: no such folder; expected one with files such as {_file('boolq')}.")
    missing = [name for name in names if name not in there]
    if any(names[name] for name in missing) or len(missing) == len(names):
        wanted = ", ".join(_file(name) for name in missing)
        has = f"it has files for {', '.join(there)}" if there else "it has none of the tasks' files"
        raise InputError(f"{called}: expected {wanted}, but {has}; add what is missing.")
    if missing:
        notify(f"{folder.resolve().name} has no {', '.join(_file(name) for name in missing)}: left out")
    return {name: LAYOUTS[name].read(folder) for name in names if name in there}


def _file(task: str) -> str:
    return LAYOUTS[task].file


def _score(task: Task, answers: Sequence[tuple[float, bool]]) -> TaskScore:
    metrics = task.metrics(answers)
    accuracy, error = mean_and_error(metrics[_METRIC])
    normalized = mean_and_error(metrics[_NORMALIZED]) if _NORMALIZED in metrics else (None, None)
    return TaskScore(
        task=task.name,
        metric=_METRIC,
        accuracy=accuracy,
        standard_error=error,
        examples=len(task.questions),
        sha256=task.sha256,
        split=task.split,
        accuracy_norm=normalized[0],
        standard_error_norm=normalized[1],
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error by the sample variance, which for accuracies is sqrt(p (1 - p) / (n - 1))."""
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
