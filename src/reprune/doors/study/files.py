"""Writes a study's tables: study.md to read, study.csv for a spreadsheet. All their numbers are from study.json."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from reprune.doors.evaluation.protocols import describe
from reprune.doors.formats import counted, sparsities
from reprune.doors.records.rows import Measure, Row, rows
from reprune.doors.records.study import ERRORS, Study
from reprune.doors.study.record import FIGURES, CellRecord, StudyRecord
from reprune.doors.study.table import (
    NOTHING,
    cost_columns,
    error_columns,
    has_parts,
    labels,
    perplexity_columns,
    quality_columns,
    task_columns,
)
from reprune.files.durable import write_text
from reprune.planning.axes import ALL, PARTS
from reprune.planning.shares import total
from reprune.planning.sources import parse_source


def write_tables(folder: Path, record: StudyRecord) -> None:
    """Write study.md and study.csv, each atomically."""
    figures = sorted(path.name for path in (folder / FIGURES).glob("*.svg"))
    write_text(folder / "study.md", markdown(record, figures))
    write_text(folder / "study.csv", comma_separated(record))


def markdown(record: StudyRecord, figures: Sequence[str] = ()) -> str:
    """The study as a page: its tables, after the paper's, and how the numbers were measured."""
    study = Study.model_validate(record)
    parts = [f"# Study of {study.model.name}", _about(study)]
    columns = [*error_columns(study), *quality_columns(study), *cost_columns(study)]
    parts += ["## Errors, perplexity, cost", _table(study, columns), _legend(study)]
    if tasks := task_columns(study):
        parts += ["## Zero-shot accuracy in percent", _table(study, tasks), _zero_shot_protocol(study)]
    if has_parts(study):
        parts += ["## Attention only, feed-forward only, all"]
        for perplexity in perplexity_columns(study):
            parts += [f"Perplexity on {perplexity.text}:", _parts_table(study, perplexity)]
    if failed := [cell for cell in study.cells if cell.status == "failed"]:
        parts += ["## Failed", "\n".join(f"- {cell.name}: {cell.error}" for cell in failed)]
    if figures:
        parts += ["## Figures", *(f"![{Path(name).stem}]({FIGURES}/{name})" for name in figures)]
    parts += ["## Settings", _settings(study)]
    return "\n\n".join(parts) + "\n"


def _about(study: Study) -> str:
    states = [cell.status for cell in study.cells]
    state = ", ".join(f"{states.count(one)} {one}" for one in ("done", "failed", "pending") if one in states)
    seeds = sorted({cell.seed for cell in study.cells})
    return (
        f"Sparsity {sparsities(study.settings)}, calibrated on {_samples(study)}; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}. Cells: {state}."
    )


def _samples(study: Study) -> str:
    """The number and sources of the samples that the cells are calibrated on."""
    settings = study.settings
    own = " or ".join(map(str, sorted({cell.self_generate for cell in study.cells})))
    length = f"samples of {settings['seqlen']} tokens"
    if not settings["calibration"]:
        return f"{own} {length} that the model writes itself"
    count = total([parse_source(name) for name in settings["calibration"]], settings["samples"])
    said = f"{count} {length} of {', '.join(settings['calibration'])}"
    return said if own == "0" else f"{said}, and on {own} that the model writes itself"


def _table(study: Study, columns: Sequence[Measure]) -> str:
    """One line per row, the dense model first."""
    head, found = labels(study), rows(study)
    if any(row.asked > 1 for row in found):
        head["seeds"] = _seeds
    lines = [["dense", *([""] * (len(head) - 1)), *(column.written_dense() for column in columns)]]
    lines += [[*(name(row) for name in head.values()), *(column.written(row) for column in columns)] for row in found]
    return _grid([*head, *(column.name for column in columns)], lines, left=len(head))


def _seeds(row: Row) -> str:
    """3, or 2 of 3 if some are not done."""
    return f"{row.asked}" if len(row.cells) == row.asked else f"{len(row.cells)} of {row.asked}"


def _parts_table(study: Study, perplexity: Measure) -> str:
    """After the paper's Table 7: perplexity by which linears were pruned."""
    there = {cell.only for cell in study.cells}
    parts = [part for part in (*PARTS[1:], ALL) if part in there]
    head = {heading: name for heading, name in labels(study).items() if heading != "part"}
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows(study):
        found.setdefault(tuple(name(row) for name in head.values()), {})[row.only] = row
    lines = [["dense", *([""] * (len(head) - 1)), *([perplexity.written_dense()] * len(parts))]]
    for names, of_part in found.items():
        lines.append([*names, *(perplexity.written(of_part[part]) if part in of_part else NOTHING for part in parts)])
    return _grid([*head, *parts], lines, left=len(head))


def _grid(head: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> str:
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in (head, rule, *lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _legend(study: Study) -> str:
    """What the columns are, and by which protocol each was measured."""
    heldout = ", ".join(study.settings["heldout"]) or "the same sources"
    writing = any(cell.self_generate for cell in study.cells)
    own = " The peak memory of a cell for which the model wrote texts includes that." if writing else ""
    lines = [
        "Errors are the last block's, of the sparse model against the dense one: *error* is the paper's, "
        "||sparse - dense||² / (N H T) on the calibration samples; the columns in % are relative, "
        f"||sparse - dense||² / ||dense||², on the calibration samples, on held-out samples of {heldout}, and on each "
        "test text.",
        "With several seeds: the mean, and the range from the lowest to the highest. Time and peak memory are those of "
        "pruning and reconstruction, memory the largest of all seeds. What cells with the same samples share, the "
        "dense model's stream and the statistics of block 0, is computed by the first of them each time the study is "
        f"started, and counted in its time; on a cluster, every cell computes its own.{own}",
    ]
    return "\n\n".join([*lines, "\n".join(f"- {line}" for line in _protocols(study))])


def _protocols(study: Study) -> Iterator[str]:
    """For each text, all that decides its numbers."""
    for text, found in study.dense.perplexity.items():
        yield (
            f"{text} (sha256 {found.text_sha256[:12]}): {describe(found.model_dump())}, "
            f"{found.tokens:,} tokens predicted, products in {found.precision}; "
            "perplexity and test error on the same windows"
        )


def _zero_shot_protocol(study: Study) -> str:
    found = study.dense.zero_shot
    examples = ", ".join(f"{task} {score.examples:,}" for task, score in found.tasks.items())
    return (
        f"± is the standard error. Examples: {examples}; {found.harness}, rows from {found.data}, products in "
        f"{found.precision}."
    )


def _settings(study: Study) -> str:
    said = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    model = study.model
    commit = f"commit {model.commit}, " if model.commit is not None else ""
    return (
        f"{said}; {_machines(study)}. Model {commit}"
        f"fingerprint {model.fingerprint[:12]}. All settings are in study.json; each cell's recipe, which makes it "
        "again, is in cells/NAME/recipe.yaml."
    )


def _machines(study: Study) -> str:
    """The machine that pruned all cells, or how many cells each of several did."""
    named = [
        (f"{one['system']}, {counted(one['threads'], 'thread')}, {one['device']}", cells)
        for one, cells in study.machines
    ]
    if len(named) == 1:
        return named[0][0]
    return "; ".join(f"{counted(cells, 'cell')} on {name}" for name, cells in named) + " (do not compare their times)"


def comma_separated(record: StudyRecord) -> str:
    """One row per cell with all its numbers, not rounded; what was not measured is empty."""
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
