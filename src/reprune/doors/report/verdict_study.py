"""What a study's numbers amount to, in words: the best cell, the ladder, and where a closer fit is a worse model.

The rules are few and stated in the report, so that a reader can check them. Knows nothing of pages and pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reprune.doors.formats import counted
from reprune.doors.records.rows import Measure, Row, known
from reprune.doors.records.run import Value
from reprune.doors.records.study import Cell, Study
from reprune.doors.report.course import course, courses, direction
from reprune.doors.report.rises import SLIGHT, rises
from reprune.doors.report.rows import PART_NAMES, TIME, Family, Rows, means, windows_of
from reprune.doors.report.text import change, listed
from reprune.doors.report.verdict import Tone, Verdict, guard_sentences
from reprune.doors.report.verdict_pruners import closer_and_worse, pruner_sentences
from reprune.doors.report.verdict_selfmade import selfmade_headline, selfmade_lines, selfmade_sentences
from reprune.planning.axes import AUTO, LADDER

RULES = (
    f"An error or a perplexity rose or fell if it changed by more than {SLIGHT}; a smaller change is taken for noise. "
    "With several seeds, means are compared, over those seeds that all the compared results have; of a pitfall, the "
    "text says in how many of them the measure rose.",
    "The ladder holds for a measure if it falls at every step from LR to the highest rung measured.",
    "The pitfall: a step up the ladder, or from its best rung to auto, lowers the calibration error and raises the "
    "held-out error, the test error or the perplexity.",
    "Self-generated samples help if, from the fewest to the most of them, every measure falls that can be compared "
    "(perplexity, test error, and the held-out error if a held-out text was given); they help in part if some fall. "
    "Means are over those seeds that all numbers of samples have.",
    "Two pruners are compared at each rung, by the measure that the best result is chosen by.",
    "A step is in vain for a measure if it lowers the calibration error and the measure neither falls nor rises.",
    "The best result has the lowest perplexity on the first text; without perplexities, the lowest test error, or else "
    "held-out error. Errors are those of the last block, relative to the dense model's output.",
    f"A window overfits if, at the end of its epochs, the held-out error is more than {SLIGHT} above its lowest (the "
    f"start included) while the calibration error is more than {SLIGHT} below what it was there.",
)
"""How the verdict is made, for the reader."""


@dataclass(frozen=True)
class Step:
    """A step of the ladder, or to `auto`, that fits the calibration samples more closely, and another measure."""

    lower: Row
    upper: Row
    measure: Measure

    def values(self, of: Callable[[Cell], Value]) -> list[Value]:
        """The means before and after the step."""
        return means((self.lower, self.upper), of)

    @property
    def seeds(self) -> tuple[int, int]:
        """The number of seeds in which the measure rises, and the number of seeds that have both values."""
        below = {cell.seed: self.measure.of(cell) for cell in self.lower.cells}
        above = {cell.seed: self.measure.of(cell) for cell in self.upper.cells}
        ways = [direction(below[seed], above[seed]) for seed in below.keys() & above.keys()]
        return ways.count("rises"), sum(way is not None for way in ways)


def pitfalls(rows: Rows) -> list[Step]:
    """All steps of ladders, and to `auto`, at which the calibration error falls and another measure rises."""
    calibration, *others = rows.measures
    return [
        Step(lower, upper, measure)
        for family in rows.families
        for lower, upper in (*pairwise(family.ladder), *_to_auto(family, rows))
        if direction(*means((lower, upper), calibration.of)) == "falls"
        for measure in others
        if direction(*means((lower, upper), measure.of)) == "rises"
    ]


def _to_auto(family: Family, rows: Rows) -> Iterator[tuple[Row, Row]]:
    """The step from the best rung of the ladder to `auto`, if both are measured."""
    auto = family.row(AUTO)
    if auto is None or rows.best is None:
        return
    _, *values = means((auto, *family.ladder), rows.best[0].of)
    fixed = [(value, number) for number, value in enumerate(values) if known(value)]
    if fixed:
        yield family.ladder[min(fixed)[1]], auto


def steps_in_vain(rows: Rows) -> list[tuple[Step, ...]]:
    """For each step without a pitfall: the measures that stay as they were though the calibration error falls."""
    calibration, *others = rows.measures
    found = []
    for family in rows.families:
        for lower, upper in pairwise(family.ladder):
            if direction(*means((lower, upper), calibration.of)) != "falls":
                continue
            ways = {measure: direction(*means((lower, upper), measure.of)) for measure in others}
            still = [measure for measure, way in ways.items() if way == "stays"]
            if still and "rises" not in ways.values():
                found.append(tuple(Step(lower, upper, measure) for measure in still))
    return found


def study_verdict(study: Study, rows: Rows) -> Verdict:
    """The verdict on a study."""
    found, vain, closer = pitfalls(rows), steps_in_vain(rows), closer_and_worse(rows)
    climbs = any(len(family.ladder) > 1 for family in rows.families)
    best, parts = tuple(_best(rows)), () if climbs else tuple(_parts(rows))
    sentences = (
        *best,
        *_ladders(rows),
        *selfmade_sentences(study, rows),
        *_pitfall_sentences(found),
        *_vain_sentences(vain),
        *pruner_sentences(closer),
        *_seeds(rows, bool(closer)),
        *_auto(rows),
        *parts,
        *_guard(rows),
        *_unfinished(study),
    )
    tone: Tone
    if not rows.families and not parts:
        tone, badge, headline = "plain", "Nothing to compare", "No cell that prunes whole blocks is finished."
    elif not climbs and (own := selfmade_headline(study, rows)) is not None:
        tone, badge, headline = own
    elif found:
        tone, badge = "mixed", "Pitfall seen"
        steps = len({(pitfall.upper.family, pitfall.upper.rung) for pitfall in found})
        place = "from rung to rung" if any(pitfall.upper.rung == AUTO for pitfall in found) else "of a ladder"
        headline = (
            f"A lower calibration error is not always a better model: at {counted(steps, 'step')} {place} it fell "
            "while the error on other text or the perplexity rose."
        )
    elif closer:
        tone, badge = "mixed", "Pitfall seen"
        headline = (
            "A lower calibration error is not always a better model: one pruner ends at the lower error, another at "
            f"the better model{', though no step from rung to rung shows it' if climbs else ''}."
        )
    elif not climbs and _count(rows) > 1:
        tone, badge, headline = "plain", "No ladder", best[0]
    elif not climbs and parts:
        tone, badge, headline = "plain", "Parts compared", parts[0]
    elif not climbs:
        tone, badge, headline = "plain", "No ladder", "Each pruner has only one rung: there is nothing to compare."
    else:
        tone, badge = "good", "No pitfall seen"
        headline = (
            "Where the calibration error fell from rung to rung, no other error and no perplexity rose by more than "
            f"{SLIGHT}" + (f"; but at {counted(len(vain), 'step')} not all measures fell." if vain else ".")
        )
    return Verdict(tone, badge, headline, tuple(said for said in sentences if said != headline), RULES)


def _count(rows: Rows) -> int:
    """The number of results that have the measure by which the best is chosen."""
    return 0 if rows.best is None else sum(bool(row.values(rows.best[0].of)) for row in rows.rows)


def _best(rows: Rows) -> Iterator[str]:
    if rows.best is None:
        return
    measure, best = rows.best
    said = f"The best of {counted(_count(rows), 'result')} is {best.family} with {best.rung}: {measure.name} "
    said += measure.written(best)
    value, dense = best.mean(measure.of), measure.dense
    if known(dense) and dense > 0 and known(value):
        said += f", which is {value / dense:.2f} times the dense model's {measure.write(dense)}"
    yield f"{said}."


def _ladders(rows: Rows) -> Iterator[str]:
    """How the measures go along the ladders; pruners with the same course share a sentence."""
    alike: dict[str, list[str]] = {}
    for family in rows.families:
        rungs = [row.rung for row in family.ladder]
        said = courses(
            {
                measure.name: course(list(zip(rungs, means(family.ladder, measure.of), strict=True)))
                for measure in rows.measures
            }
        )
        if said:
            alike.setdefault("; ".join(said), []).append(family.name)
    for said_of_all, names in alike.items():
        yield f"Along the ladder of {listed(names)}, {said_of_all}."


def _pitfall_sentences(found: Sequence[Step]) -> Iterator[str]:
    """One sentence per step."""
    steps: dict[tuple[str, str], list[Step]] = {}
    for pitfall in found:
        steps.setdefault((pitfall.upper.family, pitfall.upper.rung), []).append(pitfall)
    for (family, upper), here in steps.items():
        rose = listed([f"{pitfall.measure.name} {_moved(pitfall)}" for pitfall in here])
        fell = _size(*here[0].values(_calibration))
        step = f"from {here[0].lower.rung} to {upper}"
        yield f"The pitfall with {family}: {step} the calibration error falls by {fell}, but {rose}."


def _vain_sentences(found: Sequence[tuple[Step, ...]]) -> Iterator[str]:
    """One sentence per pruner and per set of measures that stay as they were."""
    alike: dict[tuple[str, str], list[str]] = {}
    for here in found:
        step = here[0]
        still = f"{listed([one.measure.name for one in here])} {'stays' if len(here) == 1 else 'stay'}"
        fell = f"by {_size(*step.values(_calibration))} from {step.lower.rung} to {step.upper.rung}"
        alike.setdefault((step.lower.family, still), []).append(fell)
    for (family, still), falls in alike.items():
        yield f"In vain with {family}: the calibration error falls {listed(falls)}, but {still} within {SLIGHT}."


def _seeds(rows: Rows, pruners: bool) -> Iterator[str]:
    """Notes on seeds; `pruners` says whether pruners are compared."""
    compared = pruners or any(family.ladder[1:] for family in rows.families) or selfmade_lines(rows)
    if compared and len({cell.seed for row in rows.rows for cell in row.cells}) == 1:
        yield "All of this comes from one seed: differences of a few percent may be chance."
    if rows.uneven:
        yield "Not all results have the same seeds: they are compared over the seeds that they have in common."


def _moved(pitfall: Step) -> str:
    measure = pitfall.measure
    before, after = pitfall.values(measure.of)
    rose, seeds = pitfall.seeds
    several = any(len(row.cells) > 1 for row in (pitfall.lower, pitfall.upper))
    where = f", in {rose} of {counted(seeds, 'seed')}" if several else ""
    values = f"from {measure.write(before)} to {measure.write(after)}"
    return f"rises by {_size(before, after)} ({values}{where})"


def _calibration(cell: Cell) -> Value:
    return cell.relative_calibration_error


def _size(before: Value, after: Value) -> str:
    return change(before, after).lstrip("+\N{MINUS SIGN}")


def _auto(rows: Rows) -> Iterator[str]:
    """How `auto` compares with the best fixed rung, and its time with that of the highest."""
    for measure in rows.measures:
        if measure.kind == "calibration":
            continue
        compared = []
        for family in rows.families:
            if (auto := family.row(AUTO)) is None:
                continue
            mine, *values = means((auto, *family.ladder), measure.of)
            fixed = [(value, row.rung) for row, value in zip(family.ladder, values, strict=True) if known(value)]
            if known(mine) and fixed:
                lowest, rung = min(fixed, key=lambda pair: pair[0])
                side = {"rises": "above", "falls": "below"}.get(str(direction(lowest, mine)))
                if measure.kind == "test" and side != "above":  # the perplexity says more
                    continue
                near = f"within {SLIGHT} of"
                compared.append(f"{family.name} {f'{_size(lowest, mine)} {side}' if side else near} {rung}")
        if compared:
            yield f"auto against the best fixed rung, by {measure.name}: {'; '.join(compared)}."
    autos = [auto for family in rows.families if (auto := family.row(AUTO)) is not None]
    ladder = [row for family in rows.families for row in family.ladder]
    if _standardized(autos) == {True} and _standardized(ladder) == {False}:
        yield (
            "auto uses the standardized loss, the ladder the paper's squared one: part of the difference comes from "
            "that."
        )
    times = []
    for family in rows.families:
        auto, highest = family.row(AUTO), family.row(LADDER[-1])
        if auto is None or highest is None:
            continue
        mine, longest = means((auto, highest), TIME.of)
        if known(mine) and known(longest) and longest > 0:
            times.append(f"{mine / longest:.2f} with {family.name}")
    if times:
        yield f"Time of auto over that of {LADDER[-1]}: {listed(times)}."


def _parts(rows: Rows) -> Iterator[str]:
    """Pruning a part of each block, compared with another part and the whole; the lowest first."""
    every = [row for row in (*rows.rows, *rows.parts) if row.only in PART_NAMES]
    for measure in (rows.perplexities or rows.errors[1:2])[:1]:
        for family, rung in dict.fromkeys((row.family, row.rung) for row in rows.parts):
            line = [row for row in every if (row.family, row.rung) == (family, rung)]
            values = zip(means(line, measure.of), line, strict=True)
            pairs = sorted((value, PART_NAMES[row.only]) for value, row in values if known(value))
            if len(pairs) > 1:
                said = listed([f"{measure.write(value)} ({part})" for value, part in pairs])
                yield f"By the part of each block that is pruned, {family} with {rung} has a {measure.name} of {said}."


def _standardized(rows: Sequence[Row]) -> set[bool]:
    """Whether the loss of the rows' trained windows is standardized: both values if some are and some are not."""
    return {window.standardized for window in windows_of(rows) if window.epochs}


def _guard(rows: Rows) -> Iterator[str]:
    """What became of the windows of all cells."""
    windows = list(windows_of((*rows.rows, *rows.parts)))
    if trained := [window for window in windows if window.epochs]:
        overfitted = sum(rise.kind == "overfits" for rise in rises(trained))
        said = f"{overfitted} of the" if overfitted else "None of the"
        yield f"{said} {counted(len(trained), 'trained window')} of all cells overfitted."
        yield from guard_sentences(trained)
    if failed := sum(bool(window.failures) for window in windows):
        yield (
            f"In {failed} of {counted(len(windows), 'window')}, an error became NaN or infinite, and the best state "
            "before was put back."
        )


def _unfinished(study: Study) -> Iterator[str]:
    failed = sum(cell.status == "failed" for cell in study.cells)
    pending = sum(cell.status == "pending" for cell in study.cells)
    if failed or pending:
        said = [
            *([f"{failed} failed"] if failed else []),
            *([f"{pending} {'is' if pending == 1 else 'are'} not finished yet"] if pending else []),
        ]
        yield f"Of {counted(len(study.cells), 'cell')}, {listed(said)}; they are not counted here."
