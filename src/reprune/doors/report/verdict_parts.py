"""What pruning a part of each block leaves, against another part and the whole, in words."""

from __future__ import annotations

from collections.abc import Iterator

from reprune.doors.report.rows import PARTS, Rows, means
from reprune.doors.report.text import known, listed


def part_sentences(rows: Rows) -> Iterator[str]:
    """One sentence a pruner and rung of which several parts are finished, the lowest first."""
    every = [row for row in (*rows.rows, *rows.parts) if row.only in PARTS]
    for measure in (rows.perplexities or rows.errors[1:2])[:1]:
        for family, rung in dict.fromkeys((row.family, row.rung) for row in rows.parts):
            line = [row for row in every if (row.family, row.rung) == (family, rung)]
            values = zip(means(line, measure.of), line, strict=True)
            pairs = sorted((value, PARTS[row.only]) for value, row in values if known(value))
            if len(pairs) > 1:
                said = listed([f"{measure.written(value)} ({part})" for value, part in pairs])
                yield f"By the part of each block that is pruned, {family} with {rung} has a {measure.name} of {said}."
