"""A study's tables, after those of the paper: their columns and how numbers are written in them. Knows no files."""

from __future__ import annotations

from collections.abc import Callable

from reprune.doors.formats import clock, percent, size
from reprune.doors.records.rows import (
    TIME,
    Measure,
    Row,
    accuracies,
    errors,
    known,
    mean_accuracy,
    normalized_errors,
    peak_memory,
    perplexities,
)
from reprune.doors.records.run import Value
from reprune.doors.records.study import Study
from reprune.planning.axes import ALL

NOTHING = "-"
_HOST, _DEVICE = peak_memory(lambda memory: memory.host), peak_memory(lambda memory: memory.device)


def has_parts(study: Study) -> bool:
    """Whether some cells prune only the attention or only the rest."""
    return any(cell.only != ALL for cell in study.cells)


def labels(study: Study) -> dict[str, Callable[[Row], str]]:
    """The columns that say what a row is, by heading: pruner and rung, and what else differs between rows."""
    found: dict[str, Callable[[Row], str]] = {"pruner": lambda row: row.pruner, "rung": lambda row: row.rung}
    if has_parts(study):
        found["part"] = lambda row: row.only
    if any(cell.self_generate for cell in study.cells):
        found["self-generated"] = lambda row: str(row.self_generate)
    return found


def error_columns(study: Study) -> list[Measure]:
    """The paper's normalized error, and the relative ones in percent: calibration, held-out, and on each text."""
    headings = {"calibration": "calibration %", "heldout": "held-out %"}
    return [
        normalized_errors(study)[0].shown(_shown("{:.4g}".format), "error"),
        *(error.shown(_share, headings.get(error.kind, f"test % {error.text}")) for error in errors(study)),
    ]


def quality_columns(study: Study) -> list[Measure]:
    """Perplexity on each text, and the mean zero-shot accuracy in percent."""
    mean = [mean_accuracy(study).shown(_accuracy, "zero-shot %")] if study.dense.zero_shot.tasks else []
    return [*perplexity_columns(study), *mean]


def perplexity_columns(study: Study) -> list[Measure]:
    """Perplexity on each text."""
    return [found.shown(_shown("{:.2f}".format), f"perplexity {found.text}") for found in perplexities(study)]


def cost_columns(study: Study) -> list[Measure]:
    """Time and peak memory of pruning and reconstruction, on a device too if one was used."""
    device = [_DEVICE.shown(_shown(size), "on the device")] if any(map(_DEVICE.of, study.cells)) else []
    return [TIME.shown(_shown(clock)), _HOST.shown(_shown(size)), *device]


def task_columns(study: Study) -> list[Measure]:
    """Zero-shot accuracy in percent, task by task, with its standard error."""
    return [task.shown(_accuracy) for task in accuracies(study)]


def _shown(write: Callable[[float], str]) -> Callable[[Value], str]:
    return lambda value: write(value) if known(value) else NOTHING


@_shown
def _share(value: float) -> str:
    """0.1234 as 12.3, with three digits."""
    return percent(value).removesuffix(" %")


@_shown
def _accuracy(value: float) -> str:
    """0.5549 as 55.49."""
    return f"{100 * value:.2f}"
