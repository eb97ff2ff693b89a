"""Where one pruner fits the calibration samples more closely than another and makes the worse model, in words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from reprune.doors.report.course import direction
from reprune.doors.report.rows import Family, Measure, Row, Rows
from reprune.doors.report.text import listed


def closer_and_worse(rows: Rows) -> dict[tuple[str, str], list[tuple[Row, Row]]]:
    """By two pruners: the rows, at the same rung, at which the first fits more closely and is the worse model.

    What a model is judged by is what the best row is chosen by; there is none where that is not measured.
    """
    if rows.best is None:
        return {}
    calibration, (measure, _) = rows.measures[0], rows.best
    found: dict[tuple[str, str], list[tuple[Row, Row]]] = {}
    for first, second in permutations(rows.families, 2):
        if not _comparable(first, second):
            continue
        for one in first.rows:
            other = second.row(one.rung)
            if (
                other is not None
                and direction(other.mean(calibration.of), one.mean(calibration.of)) == "falls"
                and direction(other.mean(measure.of), one.mean(measure.of)) == "rises"
            ):
                found.setdefault((first.name, second.name), []).append((one, other))
    return found


def pruner_sentences(rows: Rows) -> Iterator[str]:
    """One sentence for two pruners."""
    for (closer, other), pairs in closer_and_worse(rows).items():
        assert rows.best is not None
        measure = rows.best[0]
        where = listed([f"{one.rung} ({_both(measure, one, two)})" for one, two in pairs])
        yield (
            f"Between pruners: {closer} ends at a lower calibration error than {other}, and at a higher "
            f"{measure.name}, with {where}."
        )


def _comparable(first: Family, second: Family) -> bool:
    """Whether two families differ in their pruner alone."""
    one, other = (family.rows[0].cells[0] for family in (first, second))
    return one.sparsity == other.sparsity and one.self_generate == other.self_generate


def _both(measure: Measure, one: Row, other: Row) -> str:
    return f"{measure.written(one.mean(measure.of))} against {measure.written(other.mean(measure.of))}"
