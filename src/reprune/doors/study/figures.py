"""A study's figures: error by block for each rung, one picture a pruner; calibration against test error.

Seeds are put together as their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from reprune.doors.study.files import FIGURES
from reprune.doors.study.record import StudyRecord
from reprune.doors.study.table import Row, counts, error_columns, perplexity_column, rows
from reprune.errors import InputError
from reprune.model.durable import write_text
from reprune.planning.axes import ALL


def write_figures(folder: Path, record: StudyRecord, note: Callable[[str], None]) -> None:
    """Write figures/*.svg, in place of those from before; without matplotlib, say how to get them."""
    try:
        drawn = dict(_figures(record))
    except InputError as error:
        note(f"no figures are drawn: {error}")
        return
    if not drawn:
        return
    (folder / FIGURES).mkdir(exist_ok=True)
    for path in (folder / FIGURES).glob("*.svg"):
        if path.stem not in drawn:
            path.unlink()
    for name, svg in drawn.items():
        write_text(folder / FIGURES / f"{name}.svg", svg)


def _figures(record: StudyRecord) -> Iterator[tuple[str, str]]:
    """Names and pictures."""
    from reprune.doors.drawing.figures import calibration_against, error_by_block

    found = [row for row in rows(record) if row.cells]
    texts = list(record["dense"]["perplexity"])
    kinds: list[tuple[str, str, Callable[[dict[str, Any]], float]]] = [
        ("calibration", "calibration error", lambda block: block["relative_calibration_error"]),
        ("heldout", "held-out error", lambda block: block["relative_heldout_error"]),
        *((f"test-{_plain(text)}", f"test error, {text}", _test_error(text)) for text in texts),
    ]
    for only in dict.fromkeys(row.only for row in found):
        part, said = ("", "") if only == ALL else (f"-{only}", f", {only} only")
        these = [row for row in found if row.only == only]
        for family in dict.fromkeys(row.family for row in these):
            for kind, label, value in kinds:
                series = {row.rung: _by_block(row, value) for row in these if row.family == family}
                title = f"Error by block, {family}{said}"
                yield f"blocks-{kind}-{family}{part}", error_by_block(series, title=title, ylabel=label, percent=True)
        for kind, label, value in kinds[1:]:
            points = [
                (f"{row.family} {row.rung}", _by_block(row, kinds[0][2])[-1], _by_block(row, value)[-1])
                for row in these
            ]
            title = f"Calibration against {label}{said}"
            yield f"calibration-{kind}{part}", calibration_against(points, title=title, ylabel=label)
        if len(counts(record)) > 1:
            yield from _by_number(record, these, part, said)


def _by_number(record: StudyRecord, found: Sequence[Row], part: str, said: str) -> Iterator[tuple[str, str]]:
    """Each error and perplexity against the number of self-generated samples, one line a pruner and rung."""
    from reprune.doors.drawing.figures import by_number

    errors = error_columns(record)[1:]
    for column in (*errors, *(perplexity_column(record, text) for text in record["dense"]["perplexity"])):
        series: dict[str, list[tuple[int, float]]] = {}
        for row in found:
            values = [value for cell in row.cells if (value := column.value(cell)) is not None]
            series.setdefault(f"{row.pruner} {row.rung}", []).extend((row.self_generate, value) for value in values)
        percent = column in errors
        name = column.heading.replace(" %", " error" if percent else "")
        picture = by_number(
            series,
            title=f"{name[0].upper()}{name[1:]}, by self-generated samples{said}",
            xlabel="self-generated samples",
            ylabel=name,
            baseline=None if column.dense is None else ("dense", column.dense),
            percent=percent,
        )
        yield f"self-generated-{_plain(name)}{part}", picture


def _by_block(row: Row, value: Callable[[dict[str, Any]], float]) -> Sequence[float]:
    """The mean over the seeds, block by block."""
    return [mean(map(value, blocks)) for blocks in zip(*(cell["blocks"] for cell in row.cells), strict=True)]


def _test_error(text: str) -> Callable[[dict[str, Any]], float]:
    return lambda block: block["test_error"][text]["relative"]


def _plain(text: str) -> str:
    """A text's name as part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)
