"""What self-generated samples change, in words: rows with different numbers of them, all else being the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from reprune.doors.records.rows import Measure, Row, by_own_samples
from reprune.doors.records.study import Study
from reprune.doors.report.course import course, courses, direction
from reprune.doors.report.rows import Rows, means
from reprune.doors.report.text import listed
from reprune.doors.report.verdict import Tone

Lines = Mapping[tuple[str, str], Mapping[int, Row]]
"""By pruner and rung: the rows by the number of self-generated samples, the lowest first."""


def selfmade_lines(rows: Rows) -> Lines:
    """All rows, if they differ in that number; otherwise none."""
    found = by_own_samples(rows.rows)
    return found if len({count for line in found.values() for count in line}) > 1 else {}


def selfmade_sentences(study: Study, rows: Rows) -> Iterator[str]:
    """One sentence per pruner and rung, on what is measured on the same samples at each number."""
    for (pruner, rung), line in selfmade_lines(rows).items():
        ways: dict[str, str | None] = {}
        for measure in _comparable(study, rows):
            values = means(tuple(line.values()), measure.of)
            first, last = measure.write(values[0]), measure.write(values[-1])
            steps = [(f"{count:,}", value) for count, value in zip(line, values, strict=True)]
            ways[f"{measure.name} ({first} to {last})"] = course(steps)
        if said := courses(ways):
            yield (
                f"With {min(line):,} to {max(line):,} self-generated samples, {pruner} with {rung}: {'; '.join(said)}."
            )


def selfmade_headline(study: Study, rows: Rows) -> tuple[Tone, str, str] | None:
    """Whether they help: the fewest against the most, by all comparable measures; None if nothing can be compared."""
    fell: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for line in selfmade_lines(rows).values():
        for measure in _comparable(study, rows):
            values = means(tuple(line.values()), measure.of)
            way = direction(values[0], values[-1])
            if way is not None and len(line) > 1:
                fell[measure.name] += way == "falls"
                count[measure.name] += 1
    if not count:
        return None
    tone: Tone
    if fell == count:
        tone, badge = "good", "Self-generated samples help"
    elif any(fell.values()):
        tone, badge = "mixed", "Self-generated samples help in part"
    else:
        tone, badge = "plain", "Self-generated samples do not help"
    said = listed([f"{name} in {fell[name]} of {count[name]}" for name in count])
    counted = "How often each measure falls from the fewest self-generated samples to the most, by pruner and rung"
    return tone, badge, f"{counted}: {said}."


def _comparable(study: Study, rows: Rows) -> list[Measure]:
    """The measures on the same samples at each number; held-out errors only if a held-out text was given."""
    kinds = ("heldout", "test", "perplexity") if study.settings.get("heldout") else ("test", "perplexity")
    return [measure for measure in rows.measures if measure.kind in kinds]
