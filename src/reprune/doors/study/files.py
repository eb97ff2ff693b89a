"""Writes a study's tables: study.md for a reader, study.csv for a spreadsheet. All their numbers are study.json's."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reprune.doors.evaluation.protocols import describe
from reprune.doors.records.study import ERRORS
from reprune.doors.study.record import CellRecord, StudyRecord
from reprune.doors.study.table import (
    Column,
    Row,
    cost_columns,
    device_column,
    error_columns,
    has_parts,
    labels,
    perplexity_column,
    quality_columns,
    rows,
    task_columns,
)
from reprune.model.durable import write_text
from reprune.planning.axes import ALL, PARTS
from reprune.planning.shares import total
from reprune.planning.sources import parse_source

FIGURES = "figures"


def write_tables(folder: Path, record: StudyRecord) -> None:
    """Write study.md and study.csv, each before or after, nothing between."""
    figures = sorted(path.name for path in (folder / FIGURES).glob("*.svg"))
    write_text(folder / "study.md", markdown(record, figures))
    write_text(folder / "study.csv", comma_separated(record))


def markdown(record: StudyRecord, figures: Sequence[str] = ()) -> str:
    """The study as a page: its tables, after the paper's 1 to 4 and 7, and under them how the numbers came about."""
    parts = [f"# Study of {record['model']['name']}", _about(record)]
    columns = [*error_columns(record), *quality_columns(record), *cost_columns(), *device_column(record)]
    parts += ["## Errors, perplexity, cost", _table(record, columns), _legend(record)]
    if tasks := task_columns(record):
        parts += ["## Zero-shot accuracy in percent", _table(record, tasks), _zero_shot_protocol(record)]
    if has_parts(record):
        parts += ["## Attention only, feed-forward only, all"]
        for text in record["dense"]["perplexity"]:
            parts += [f"Perplexity on {text}:", _parts_table(record, text)]
    if failed := [cell for cell in record["cells"] if cell["status"] == "failed"]:
        parts += ["## Failed", "\n".join(f"- {cell['name']}: {cell['error']}" for cell in failed)]
    if figures:
        parts += ["## Figures", *(f"![{Path(name).stem}]({FIGURES}/{name})" for name in figures)]
    parts += ["## Settings", _settings(record)]
    return "\n\n".join(parts) + "\n"


def _about(record: StudyRecord) -> str:
    settings, cells = record["settings"], record["cells"]
    count = {status: sum(cell["status"] == status for cell in cells) for status in ("done", "failed", "pending")}
    state = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    seeds = sorted({cell["seed"] for cell in cells})
    return (
        f"Sparsity {settings['sparsity']}, calibrated on {_samples(settings, cells)}; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}. Cells: {state}."
    )


def _samples(settings: Mapping[str, Any], cells: Sequence[CellRecord]) -> str:
    """What the cells are calibrated on, by the counts that the sources have."""
    own = " or ".join(map(str, sorted({cell["self_generate"] for cell in cells})))
    length = f"samples of {settings['seqlen']} tokens"
    if not settings["calibration"]:
        return f"{own} {length} that the model writes itself"
    count = total([parse_source(name) for name in settings["calibration"]], settings["samples"])
    said = f"{count} {length} of {', '.join(settings['calibration'])}"
    return said if own == "0" else f"{said}, and on {own} that the model writes itself"


def _table(record: StudyRecord, columns: Sequence[Column]) -> str:
    """One line a row, the dense model first."""
    head, found = labels(record), rows(record)
    if any(row.asked > 1 for row in found):
        head["seeds"] = _seeds
    lines = [["dense", *([""] * (len(head) - 1)), *(column.of_dense() for column in columns)]]
    lines += [[*(name(row) for name in head.values()), *(column.of(row.cells) for column in columns)] for row in found]
    return _grid([*head, *(column.heading for column in columns)], lines, left=len(head))


def _seeds(row: Row) -> str:
    """3, or 2 of 3 where some are not done."""
    return f"{row.asked}" if len(row.cells) == row.asked else f"{len(row.cells)} of {row.asked}"


def _parts_table(record: StudyRecord, text: str) -> str:
    """After the paper's Table 7: perplexity by which linears were pruned."""
    there = {cell["only"] for cell in record["cells"]}
    parts = [part for part in (*PARTS[1:], ALL) if part in there]
    column = perplexity_column(record, text)
    head = {heading: name for heading, name in labels(record).items() if heading != "part"}
    found: dict[tuple[str, ...], dict[str, tuple[CellRecord, ...]]] = {}
    for row in rows(record):
        found.setdefault(tuple(name(row) for name in head.values()), {})[row.only] = row.cells
    lines = [["dense", *([""] * (len(head) - 1)), *([column.of_dense()] * len(parts))]]
    lines += [[*names, *(column.of(cells.get(part, ())) for part in parts)] for names, cells in found.items()]
    return _grid([*head, *parts], lines, left=len(head))


def _grid(head: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> str:
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in (head, rule, *lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _legend(record: StudyRecord) -> str:
    """What the columns are, and by which protocol each was measured."""
    lines = [
        "Errors are the last block's, of the sparse model against the dense one: *error* is the paper's, "
        "||sparse - dense||² / (N H T) on the calibration samples; the columns in % are relative, "
        "||sparse - dense||² / ||dense||², on the calibration samples, on held-out samples of the same sources, and "
        "on each test text.",
        "Of several seeds: the mean, and from the least to the largest. Time and peak memory are those of pruning and "
        "reconstruction, memory the largest of all seeds. What cells of one seed have in common, the dense model's "
        "stream and the statistics of block 0, is in the time of the first of them.",
    ]
    return "\n\n".join([*lines, "\n".join(f"- {line}" for line in protocols(record))])


def protocols(record: StudyRecord) -> Iterator[str]:
    """For each text, all that decides its numbers."""
    for text, measured in record["dense"]["perplexity"].items():
        yield (
            f"{text} (sha256 {measured['text_sha256'][:12]}): {describe(measured)}, "
            f"{measured['tokens']:,} tokens predicted, products in {measured['precision']}; "
            "perplexity and test error on the same windows"
        )


def _zero_shot_protocol(record: StudyRecord) -> str:
    found = record["dense"]["zero_shot"] or {}
    rows_ = ", ".join(f"{task} {score['examples']:,}" for task, score in found["tasks"].items())
    harness = f"{found['harness']}, " if found.get("harness") else ""
    return (
        f"± is the standard error. Examples: {rows_}; {harness}rows from {found['data']}, products in "
        f"{found['precision']}."
    )


def _settings(record: StudyRecord) -> str:
    said = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    machine, model = record["machine"], record["model"]
    commit = f"commit {model['commit']}, " if "commit" in model else ""
    return (
        f"{said}; {machine['system']}, {machine['threads']} threads, {machine['device']}. Model {commit}"
        f"fingerprint {model['fingerprint'][:12]}. All settings are in study.json; each cell's recipe, which makes it "
        "again, is in cells/NAME/recipe.yaml."
    )


def comma_separated(record: StudyRecord) -> str:
    """One row a cell, all its numbers as they are; what was not measured is empty."""
    texts = list(record["dense"]["perplexity"])
    tasks = list((record["dense"]["zero_shot"] or {}).get("tasks", ()))
    table = [dict(_numbers(cell, texts, tasks)) for cell in record["cells"]]
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


def _numbers(cell: CellRecord, texts: Sequence[str], tasks: Sequence[str]) -> Iterator[tuple[str, Any]]:
    identity = ("name", "pruner", "sparsity", "rung", "only", "self_generate", "seed", "status", "error")
    for key in (*identity, *ERRORS):
        yield key, cell[key]
    for text in texts:
        errors = cell["test_error"].get(text, {})
        yield f"test_error:{text}", errors.get("normalized")
        yield f"relative_test_error:{text}", errors.get("relative")
        yield f"perplexity:{text}", cell["perplexity"].get(text)
    for task in tasks:
        score = cell["zero_shot"].get(task, {})
        yield f"zero_shot:{task}", score.get("accuracy")
        yield f"zero_shot_standard_error:{task}", score.get("standard_error")
    yield "zero_shot_mean", cell["zero_shot_mean"]
    yield "seconds", cell["seconds"]
    yield "measuring_seconds", cell["measuring_seconds"]
    for where in ("host", "device"):
        yield f"peak_memory_bytes:{where}", (cell["peak_memory_bytes"] or {}).get(where)
