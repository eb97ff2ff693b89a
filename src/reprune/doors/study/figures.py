"""A study's figures: error by block for each rung, one picture per pruner; calibration against test error.

Of several seeds, the mean is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reprune.doors.records.rows import Measure, Row, by_own_samples, errors, points, rows
from reprune.doors.records.study import Study
from reprune.doors.study.record import FIGURES, StudyRecord
from reprune.doors.study.table import error_columns, perplexity_columns
from reprune.errors import InputError
from reprune.files.durable import write_text
from reprune.planning.axes import ALL


def write_figures(folder: Path, record: StudyRecord, note: Callable[[str], None]) -> None:
    """Write figures/*.svg, replacing earlier ones; without matplotlib, say how to get them."""
    try:
        drawn = dict(_figures(Study.model_validate(record)))
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


def _figures(study: Study) -> Iterator[tuple[str, str]]:
    """Names and pictures."""
    from reprune.doors.drawing.figures import calibration_against, error_by_block

    found = [row for row in rows(study) if row.cells]
    calibration, *others = errors(study)
    for only in dict.fromkeys(row.only for row in found):
        part, said = ("", "") if only == ALL else (f"-{only}", f", {only} only")
        these = [row for row in found if row.only == only]
        for family in dict.fromkeys(row.family for row in these):
            for error in (calibration, *others):
                series = {row.rung: row.by_block(error.of) for row in these if row.family == family}
                picture = error_by_block(
                    series, title=f"Error by block, {family}{said}", ylabel=_label(error), percent=True
                )
                yield f"blocks-{_short(error)}-{family}{part}", picture
        for error in others:
            both = [(f"{row.family} {row.rung}", row.mean(calibration.of), row.mean(error.of)) for row in these]
            title = f"Calibration against {_label(error)}{said}"
            yield f"calibration-{_short(error)}{part}", calibration_against(both, title=title, ylabel=_label(error))
        if len({cell.self_generate for cell in study.cells}) > 1:
            yield from _by_number(study, these, part, said)


def _by_number(study: Study, found: Sequence[Row], part: str, said: str) -> Iterator[tuple[str, str]]:
    """Each error and perplexity against the number of self-generated samples, one line per pruner and rung."""
    from reprune.doors.drawing.figures import by_number

    lines = by_own_samples(found)
    for column in (*error_columns(study)[1:], *perplexity_columns(study)):
        percent = column.kind != "perplexity"
        name = column.name.replace(" %", " error", 1) if percent else column.name
        picture = by_number(
            points(lines, column.of),
            title=f"{name[0].upper()}{name[1:]}, by self-generated samples{said}",
            ylabel=name,
            dense=column.dense,
            percent=percent,
        )
        yield f"self-generated-{_plain(name)}{part}", picture


def _label(error: Measure) -> str:
    return f"test error, {error.text}" if error.text else error.name


def _short(error: Measure) -> str:
    return f"{error.kind}-{_plain(error.text)}" if error.text else error.kind


def _plain(text: str) -> str:
    """A text's name as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)
