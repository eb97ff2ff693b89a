"""Where one pruner fits the calibration samples more closely than another but makes the worse model, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from reprune.doors.records.rows import Measure, Row
from reprune.doors.report.course import direction
from reprune.doors.report.rows import Family, Rows, means
from reprune.doors.report.text import listed


@dataclass(frozen=True)
class Closer:
    """A pruner that fits more closely than another but makes the worse model."""

    measure: Measure  # the one that is higher
    pairs: tuple[tuple[Row, Row], ...]  # its row and the other's, at the same rung


def closer_and_worse(rows: Rows) -> list[Closer]:
    """All such pruners, by the measure that the best row is chosen by; none if it was not measured."""
    if rows.best is None:
        return []
    calibration, (measure, _) = rows.measures[0], rows.best
    found = []
    for first, second in permutations(rows.families, 2):
        both = [(one, other) for one in first.rows if (other := second.row(one.rung)) is not None]
        pairs = tuple(
            (one, other)
            for one, other in both
            if direction(*means((other, one), calibration.of)) == "falls"
            and direction(*means((other, one), measure.of)) == "rises"
        )
        if pairs and _comparable(first, second):
            found.append(Closer(measure, pairs))
    return found


def pruner_sentences(found: Sequence[Closer]) -> Iterator[str]:
    """One sentence per pair of pruners."""
    for one in found:
        where = listed([f"{mine.rung} ({_both(one.measure, mine, theirs)})" for mine, theirs in one.pairs])
        mine, theirs = one.pairs[0]
        yield (
            f"Between pruners: {mine.family} ends at a lower calibration error than {theirs.family}, but at a higher "
            f"{one.measure.name}, with {where}."
        )


def _comparable(first: Family, second: Family) -> bool:
    """Whether two families differ only in their pruner."""
    return first.rows[0].self_generate == second.rows[0].self_generate


def _both(measure: Measure, one: Row, other: Row) -> str:
    return " against ".join(map(measure.write, means((one, other), measure.of)))
