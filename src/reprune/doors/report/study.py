"""The report on a study: shows its numbers as pictures and tables. Judges nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from reprune.doors.drawing.figures import by_rung, calibration_against, error_by_block
from reprune.doors.formats import counted, sparsities
from reprune.doors.records.rows import Measure, known
from reprune.doors.records.study import Study
from reprune.doors.report.made import study_made
from reprune.doors.report.page import Page, Plot, Section, Table, Tile
from reprune.doors.report.rises import SLIGHT
from reprune.doors.report.rows import DEVICE, HOST, TIME, Rows, bring_together
from reprune.doors.report.run import epochs_section
from reprune.doors.report.selfmade import selfmade_sections
from reprune.doors.report.tables import parts, results, results_normalized, steps, unfinished, zero_shot
from reprune.doors.report.text import NONE, duration, listed, share, two_places
from reprune.doors.report.verdict_study import study_verdict
from reprune.planning.axes import LADDER


def study_page(study: Study) -> Page:
    """The page on a study."""
    rows = bring_together(study)
    pruners, rungs = (
        listed(list(dict.fromkeys(getattr(cell, name) for cell in study.cells))) for name in ("pruner", "rung")
    )
    return Page(
        kind="Pruning study",
        title=study.model.name,
        subtitle=f"{pruners} at {sparsities({'sparsity': NONE, **study.settings})}, reconstruction {rungs}",
        verdict=study_verdict(study, rows),
        tiles=tuple(_tiles(study, rows)),
        sections=tuple(_sections(study, rows)),
    )


def _tiles(study: Study, rows: Rows) -> Iterator[Tile]:
    best = rows.best
    if best is not None:
        measure, row = best
        yield Tile(f"Lowest {measure.name}", measure.write(row.mean(measure.of)), f"{row.family}, {row.rung}")
    for text, found in study.dense.perplexity.items():
        yield Tile(f"Dense perplexity on {text}", two_places(found.perplexity))
    done = sum(cell.status == "done" for cell in study.cells)
    seeds = len({cell.seed for cell in study.cells})
    yield Tile("Cells finished", f"{done} of {len(study.cells)}", f"with {counted(seeds, 'seed')}")
    seconds = [cell.seconds for cell in study.cells if known(cell.seconds)]
    if seconds:
        yield Tile("Time", duration(sum(seconds)), "pruning and reconstruction, all cells")


def _sections(study: Study, rows: Rows) -> Iterator[Section]:
    if rows.families:
        yield _results(study, rows)
    if any(len(family.ladder) > 1 for family in rows.families):
        yield Section(
            "steps",
            "Step by step up the ladder",
            intro=(
                "What each step changes. A step is called a pitfall if it lowers the calibration error and raises "
                f"another measure (in bold), each by more than {SLIGHT}.",
            ),
            tables=(steps(rows),),
        )
    if plots := [*_blocks(rows, rows.errors[1]), *_blocks(rows, rows.errors[0])]:
        intro = "Relative to the dense model's output, on held-out samples and on calibration samples."
        yield Section("blocks", "Error by block", intro=(intro,), plots=plots)
    if plots := list(_against(rows)):
        yield Section("against", "Calibration error against error on other text", plots=plots)
    if plots := list(_quality(rows)):
        yield Section("quality", "Quality by rung", plots=plots)
    yield from selfmade_sections(rows)
    trained = [
        (
            row.family,
            f"{row.family} {row.rung}{f', seed {cell.seed}' if len(row.cells) > 1 else ''}, window {window.index}",
            window,
        )
        for row in rows.rows
        for cell in row.cells
        for window in cell.windows
        if window.epochs
    ]
    if trained:
        yield epochs_section(trained)
    if rows.parts:
        yield Section(
            "parts",
            "Attention or feed-forward alone",
            intro=("How much of the loss comes from which part of a block, after the paper's Table 7.",),
            tables=parts(rows),
        )
    if plots := list(_cost(rows)):
        yield Section("cost", "Time and memory", plots=plots)
    if any(cell.status != "done" for cell in study.cells):
        yield Section("unfinished", "Cells without a result", tables=(unfinished(study),))
    yield study_made(study)


def _results(study: Study, rows: Rows) -> Section:
    said = ""
    if rows.several:
        said = " Means over the seeds, with the lowest and the highest; of peak memory, the highest alone."
    if own := max(cell.self_generate for cell in study.cells):
        said += f" +{own} after a pruner's name: calibrated on that many more samples, which the model wrote itself."
    return Section(
        "results",
        "Results",
        intro=(
            f"One row per pruner and rung, as in the paper's Tables 1 to 3; in bold, the best of its pruner.{said}",
        ),
        tables=(results(rows),),
        folded=(results_normalized(rows), *([zero_shot(rows)] if rows.accuracies else [])),
    )


def _blocks(rows: Rows, error: Measure) -> Iterator[Plot]:
    """One panel per pruner, one line per rung."""
    for family in rows.families:
        series = {row.rung: row.by_block(error.of) for row in family.rows}
        if not any(series.values()):
            continue
        title = f"{family.name}: {error.name} by block"
        blocks = enumerate(zip_longest(*series.values()))
        lines = [(str(block), *map(share, values)) for block, values in blocks]
        yield Plot(
            error_by_block(series, title=title, ylabel=f"relative {error.name}", percent=True),
            "Mean over the seeds." if rows.several else "",
            Table(title, ("block", *series), lines),
        )


def _against(rows: Rows) -> Iterator[Plot]:
    """Calibration error against each other error, one point per pruner, rung and seed."""
    calibration, *others = rows.errors
    for measure in others:
        found = [(row, cell, calibration.of(cell), measure.of(cell)) for row in rows.rows for cell in row.cells]
        there = [(row, cell, x, y) for row, cell, x, y in found if known(x) and known(y)]
        if not there:
            continue
        title = f"Calibration error against {measure.name}"
        lines = [
            (row.family, row.rung, str(cell.seed), share(x), share(y), f"{y / x:.2f}" if x else NONE)
            for row, cell, x, y in there
        ]
        columns = ("pruner", "rung", "seed", calibration.name, measure.name, "ratio")
        points = [(f"{row.family} {row.rung}", x, y) for row, _, x, y in there]
        yield Plot(
            calibration_against(points, title=title, ylabel=measure.name),
            "Last block. Up the ladder, points move left; where they no longer move down, the closer fit gains "
            "nothing. On the dotted line both errors are equal. Points are named where there is room.",
            Table(title, columns, lines, labels=3),
        )


def _quality(rows: Rows) -> Iterator[Plot]:
    for perplexity in rows.perplexities:
        yield from _ladder(rows, perplexity, "perplexity")
    yield from _ladder(rows, rows.accuracy, "accuracy", percent=True)


def _cost(rows: Rows) -> Iterator[Plot]:
    yield from _ladder(rows, TIME, "minutes", unit=60)
    yield from _ladder(rows, HOST, "GB", unit=1e9)
    if any(value > 0 for row in rows.rows for value in row.values(DEVICE.of)):
        yield from _ladder(rows, DEVICE, "GB", unit=1e9)


def _ladder(rows: Rows, measure: Measure, ylabel: str, unit: float = 1, percent: bool = False) -> Iterator[Plot]:
    """A measure on each rung, one line per pruner; nothing if it was never measured."""
    rungs = rows.rungs
    series = {}
    lines = []
    for family in rows.families:
        found = [family.row(rung) for rung in rungs]
        series[family.name] = [[value / unit for value in row.values(measure.of)] if row else [] for row in found]
        lines.append([family.name, *(measure.written(row) if row else NONE for row in found)])
    if not any(values for columns in series.values() for values in columns):
        return
    title = f"{measure.name[:1].upper()}{measure.name[1:]} by rung"
    joined = sum(rung in LADDER for rung in rungs)
    dense = measure.dense / unit if known(measure.dense) else None
    said = ["Dots are seeds, lines join their means."] if rows.several else []
    said += ["The dotted line is the dense model."] if dense is not None else []
    yield Plot(
        by_rung(series, rungs, title=title, ylabel=ylabel, joined=joined, dense=dense, percent=percent),
        " ".join(said),
        Table(title, ("pruner", *rungs), lines),
    )
