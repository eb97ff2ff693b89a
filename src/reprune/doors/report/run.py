"""The report on one run: shows the numbers of reprune.json as pictures and tables. Judges nothing itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from reprune.doors.drawing.figures import (
    calibration_against,
    change_by_window,
    error_by_block,
    error_by_epoch,
    seconds_by_window,
    share_by_matrix,
)
from reprune.doors.formats import counted, sparsities
from reprune.doors.records.rows import mean
from reprune.doors.records.run import Change, Distillation, Run, Window
from reprune.doors.report.made import processes_of, run_made
from reprune.doors.report.page import Page, Plot, Section, Table, Tile
from reprune.doors.report.rises import calibration_course, heldout_course, judged_course, rises
from reprune.doors.report.text import NONE, change, duration, memory, number, share
from reprune.doors.report.verdict import run_verdict
from reprune.planning.schedule import ranges

_SHOWN = 3
"""The number of windows whose epochs are drawn."""

_TALLEST = 24
"""The most rows of a map of matrices; if there are more, matrices that differ only in a number (experts) share one."""


def run_page(run: Run) -> Page:
    """The page on one run."""
    return Page(
        kind="Pruning report",
        title=run.model.name,
        subtitle=(
            f"{run.pruner or NONE} at {sparsities({'sparsity': NONE, **run.recipe})}, "
            f"reconstruction {run.recipe.get('reconstruct') or NONE}"
        ),
        verdict=run_verdict(run),
        tiles=tuple(_tiles(run)),
        sections=tuple(_sections(run)),
    )


def _tiles(run: Run) -> Iterator[Tile]:
    last = run.blocks[-1]
    yield Tile("Sparsity", share(run.sparsity), "of pruned matrices")
    yield Tile("Calibration error", share(last.relative_calibration_error), "last block, relative")
    yield Tile("Held-out error", share(last.relative_heldout_error), "last block, relative")
    yield Tile("Time", duration(run.seconds), "without the model's texts" if run.self_generation else "")
    yield Tile("Peak memory", memory(run.peak.most), "on " + _device(run) if run.peak.device else "of " + _process(run))


def _sections(run: Run) -> Iterator[Section]:
    yield _blocks(run)
    yield _windows(run)
    if trained := [window for window in run.windows if window.epochs]:
        yield epochs_section([(str(window.index), f"Window {window.index}", window) for window in trained])
    if run.distillation is not None:
        yield _predictions(run.distillation)
    if any(block.matrices for block in run.blocks):
        yield _matrices(run)
    yield _cost(run)
    yield run_made(run)


def _blocks(run: Run) -> Section:
    columns = ("block", "calibration", "held-out", "held-out over calibration")
    relative = [(block.relative_calibration_error, block.relative_heldout_error) for block in run.blocks]
    normalized = [(block.calibration_error, block.heldout_error) for block in run.blocks]

    def table(caption: str, pairs: Sequence[tuple[float, float]], write: Callable[[float], str]) -> Table:
        rows = [
            (str(block.index), write(a), write(b), f"{b / a:.2f}" if a else NONE)
            for block, (a, b) in zip(run.blocks, pairs, strict=True)
        ]
        return Table(caption, columns, rows)

    return Section(
        "blocks",
        "Error by block",
        intro=("Errors add up from block to block, as each block reads the outputs of the sparse blocks before it.",),
        plots=(
            Plot(
                error_by_block(
                    {"calibration": [a for a, _ in relative], "held-out": [b for _, b in relative]},
                    title="Relative error by block",
                    ylabel="relative error",
                    percent=True,
                ),
                "The power of the difference from the dense model's output, over that output's power.",
                table("Relative error by block", relative, share),
            ),
            Plot(
                error_by_block(
                    {"calibration": [a for a, _ in normalized], "held-out": [b for _, b in normalized]},
                    title="Normalized error by block",
                    ylabel="normalized error",
                ),
                "The mean square of the difference. A few very large activations can dominate it.",
                table("Normalized error by block", normalized, number),
            ),
        ),
    )


def _measure(run: Run) -> str:
    if not any(window.standardized for window in run.windows):
        return ""
    return (
        " They are standardized, as its loss is: the mean square of each feature's difference over the feature's"
        " standard deviation. Errors by block are not standardized."
    )


def _windows(run: Run) -> Section:
    trained = any(window.epochs for window in run.windows)
    points = [
        (name, getattr(window.relative_calibration_error, when), getattr(window.relative_heldout_error, when))
        for name, when in ([("before", "before"), ("after", "after")] if trained else [("pruned", "after")])
        for window in run.windows
    ]
    moves = " A window that reconstruction helps moves down; one that only moves left was fitted to its samples."
    return Section(
        "windows",
        "Calibration against held-out error",
        intro=("The errors of a window are against the target that it is fitted to." + _measure(run),),
        plots=(
            Plot(
                calibration_against(points, title="Each window's two errors", ylabel="held-out error"),
                "On the dotted line both errors are equal; above it, the held-out error is higher."
                + (moves if trained else ""),
                _window_table(run),
            ),
            *([_changes(run)] if trained else []),
        ),
    )


def _changes(run: Run) -> Plot:
    """Where reconstruction gained, and where it gained only on the samples that it was fitted to."""
    pairs = [
        (_fraction(window.relative_calibration_error), _fraction(window.relative_heldout_error))
        for window in run.windows
    ]
    return Plot(
        change_by_window(
            {"calibration": [a for a, _ in pairs], "held-out": [b for _, b in pairs]},
            title="What reconstruction changed",
            ylabel="change of the error",
        ),
        "The further below zero, the more reconstruction gained. Where the held-out line is above the calibration "
        "line, part of the gain holds for the calibration samples only.",
        Table(
            "Change of each window's relative errors by its reconstruction",
            ("window", "calibration", "held-out"),
            [
                (
                    str(window.index),
                    change(window.relative_calibration_error.before, window.relative_calibration_error.after),
                    change(window.relative_heldout_error.before, window.relative_heldout_error.after),
                )
                for window in run.windows
            ],
        ),
    )


def _fraction(error: Change) -> float | None:
    return error.after / error.before - 1 if error.before > 0 else None


def _window_table(run: Run) -> Table:
    columns = [
        *("window", "blocks", "calibration before", "after", "change", "held-out before", "after", "change"),
        *("kept epoch", "changed blocks", "time"),
    ]
    rows = []
    for window in run.windows:
        calibration, heldout = window.relative_calibration_error, window.relative_heldout_error
        kept = f"{window.kept_epoch} of {len(window.epochs)}" if window.epochs else NONE
        early = ", stopped early" if window.guard is not None and window.guard.stopped_early else ""
        changed = ", ".join(map(str, window.reconstructed)) or "none"
        rows.append(
            [
                str(window.index),
                ", ".join(map(str, window.blocks)),
                *(share(calibration.before), share(calibration.after), change(calibration.before, calibration.after)),
                *(share(heldout.before), share(heldout.after), change(heldout.before, heldout.after)),
                *(kept + early, changed, duration(window.seconds)),
            ]
        )
    return Table("Relative errors of each window, before and after its reconstruction", columns, rows)


def epochs_section(windows: Sequence[tuple[str, str, Window]]) -> Section:
    """The epochs of the windows whose held-out error rose most, or, if none did, of those with the widest gap.

    Args:
        windows: (group, name, window), each with epochs; one window of each group is shown.
    """
    named = {id(window): (group, name) for group, name, window in windows}
    ranked = [rise.window for rise in rises([window for *_, window in windows])]
    intro = "The windows whose held-out error rose most over their epochs."
    if not ranked:
        ranked = sorted((window for *_, window in windows), key=_gap, reverse=True)
        intro = "No window's held-out error rose; these have the widest gap between the two errors."
    first: dict[str, Window] = {}
    for window in ranked:
        first.setdefault(named[id(window)][0], window)
    found = list(first.values())[:_SHOWN]
    plots = []
    for window in found:
        name = named[id(window)][1]
        calibration, heldout = calibration_course(window), heldout_course(window)
        errors = {"calibration": calibration, "held-out": heldout}
        if window.judged_apart:
            errors["held-out, standardized"] = judged_course(window)
        rows = [
            (str(epoch), *map(share, found), "kept" if epoch == window.kept_epoch else "")
            for epoch, found in enumerate(zip(*errors.values(), strict=True))
        ]
        blocks = f"block{'' if len(window.blocks) == 1 else 's'} {', '.join(map(str, window.blocks))}"
        kept = f"Epoch {window.kept_epoch} of {len(window.epochs)}" if window.kept_epoch else "The start"
        plots.append(
            Plot(
                error_by_epoch(calibration, heldout, kept=window.kept_epoch, title=f"{name} ({blocks}) by epoch"),
                f"{kept} was kept." + _judge(window),
                Table(f"{name}: relative error by epoch", ("epoch", *errors, "kept"), rows),
            )
        )
    mixed = any(window.teacher_forcing for window in found)
    mean = "An epoch's calibration error is the mean over its samples, each measured before its step"
    forced = ", on states that are partly the dense model's (teacher forcing)" if mixed else ""
    return Section(
        "epochs",
        "Error by epoch",
        intro=(f"{intro} {mean}{forced}.",),
        plots=plots,
    )


def _judge(window: Window) -> str:
    """The measure of the errors, and the one by which states were compared."""
    if window.standardized:
        return " Errors are standardized, as the loss is."
    if not window.judged_apart or window.guard is None or not window.guard.on:
        return ""
    return (
        " Of the states whose plain held-out error is not above that of the start, it has the lowest standardized one"
        " (see the table)."
    )


def _gap(window: Window) -> float:
    calibration = window.relative_calibration_error.after
    return window.relative_heldout_error.after / calibration if calibration > 0 else 0.0


def _predictions(step: Distillation) -> Section:
    """The effect of fitting the last blocks to the dense model's predictions."""
    before, after = step.heldout_divergence.before, step.heldout_divergence.after
    said = f"On held-out samples their divergence went from {number(before)} to {number(after)} nats per token"
    error = step.last_block.relative_heldout_error
    blocks = f"Block {step.blocks[0]} was" if len(step.blocks) == 1 else f"Blocks {ranges(step.blocks)} were"
    intro = (
        f"{blocks} fitted once more, to the probabilities that the dense model gives to the next token. {said} "
        f"({change(before, after)}).",
        f"The last block's held-out error, which compares outputs and not predictions, went from {share(error.before)} "
        f"to {share(error.after)}. Errors by block are those after this step, errors of windows those before it.",
    )
    heldout = [before, *(epoch.heldout_divergence for epoch in step.epochs)]
    calibration = [None, *(epoch.calibration_divergence for epoch in step.epochs)]
    rows = [
        (str(epoch), number(one), number(other), "kept" if epoch == step.kept_epoch else "")
        for epoch, (one, other) in enumerate(zip(calibration, heldout, strict=True))
    ]
    title = "Divergence of predictions by epoch"
    plot = Plot(
        error_by_epoch(
            calibration, heldout, kept=step.kept_epoch, title=title, ylabel="KL(dense || sparse), nats", percent=False
        ),
        "Measured before the result is rounded to the dtype that it is saved in. An epoch's calibration divergence is "
        "the mean over its samples, each measured before its step.",
        Table(title, ("epoch", "calibration", "held-out", "kept"), rows),
    )
    return Section("predictions", "Predictions of the last blocks", intro=intro, plots=(plot,))


def _matrices(run: Run) -> Section:
    names = list(dict.fromkeys(matrix.name for block in run.blocks for matrix in block.matrices))
    joined = len(names) > _TALLEST
    found: dict[str, list[list[float]]] = {}
    for place, block in enumerate(run.blocks):
        for matrix in block.matrices:
            name = re.sub(r"\d+", "*", matrix.name) if joined else matrix.name
            found.setdefault(name, [[] for _ in run.blocks])[place].append(matrix.sparsity)
    rows = {name: [mean(shares) for shares in blocks] for name, blocks in found.items()}
    all_shares = [matrix.sparsity for block in run.blocks for matrix in block.matrices]
    low, high = min(all_shares), max(all_shares)
    spread = (
        f"All {len(all_shares):,} matrices have {share(low)} of their weights at zero."
        if share(low) == share(high)
        else f"From {share(low)} to {share(high)} of a matrix's weights are zero."
    )
    if joined:
        spread += " Matrices whose names differ only in a number share a row, which shows their mean."
    return Section(
        "sparsity",
        "Sparsity by matrix",
        intro=(spread,),
        plots=(
            Plot(
                share_by_matrix(rows, title="Share of zeros, by block and matrix"),
                "The stronger the colour, the more of the matrix is zero.",
                Table(
                    "Share of zeros, by block and matrix",
                    ("block", *rows),
                    [
                        (str(block.index), *(share(shares[place]) for shares in rows.values()))
                        for place, block in enumerate(run.blocks)
                    ],
                ),
            ),
        ),
    )


def _process(run: Run) -> str:
    return "the largest process" if run.ranks > 1 else "the process"


def _device(run: Run) -> str:
    return "the fullest device" if run.ranks > 1 and run.peak.device else "the device"


def _cost(run: Run) -> Section:
    pairs = [("Whole run", duration(run.seconds))]
    if (own := run.self_generation) is not None:
        wrote = f"the model wrote {counted(own.texts, 'text')}, or what its cache lacked of them"
        pairs.insert(0, ("Before the run", f"{wrote}, in {duration(own.seconds)}"))
    if run.distillation is not None:
        pairs.append(("Of which distillation", duration(run.distillation.seconds)))
    pairs += processes_of(run)
    if run.exchange is not None:
        pairs.append(("Of the windows' time, exchange between processes", f"{share(run.exchange)}, waiting included"))
    device = memory(run.peak.device) if run.peak.device else "no device was used"
    pairs += [(f"Peak memory of {_process(run)}", memory(run.peak.host)), (f"Peak memory of {_device(run)}", device)]
    rows = [(str(window.index), ", ".join(map(str, window.blocks)), duration(window.seconds)) for window in run.windows]
    plot = Plot(
        seconds_by_window([window.seconds for window in run.windows], title="Time by window"),
        "Pruning and reconstruction of each window.",
        Table("Time by window", ("window", "blocks", "time"), rows, labels=2),
    )
    return Section("cost", "Time and memory", plots=(plot,), pairs=pairs)
