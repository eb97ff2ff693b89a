"""The report on distillation: how near the sparse model's predictions have come to the dense model's."""

from __future__ import annotations

from reprune.doors.drawing.figures import error_by_epoch
from reprune.doors.records.run import Distillation
from reprune.doors.report.page import Plot, Section, Table
from reprune.doors.report.text import change, number, share
from reprune.planning.schedule import ranges


def predictions_section(step: Distillation) -> Section:
    """What fitting the last blocks to the dense model's predictions has done."""
    before, after = step.heldout_divergence.before, step.heldout_divergence.after
    said = f"On held-out samples their divergence went from {number(before)} to {number(after)} nats a token"
    error = step.last_block.relative_heldout_error
    intro = (
        f"Blocks {ranges(step.blocks)} were fitted once more, to the probabilities that the dense model gives to the "
        f"next token. {said} ({change(before, after)}).",
        f"The last block's held-out error, which compares its output and no predictions, went from "
        f"{share(error.before)} to {share(error.after)} by it. Errors by block are those after it, those of windows "
        "before.",
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
        "Before the result is rounded to the dtype that it is saved in. An epoch's calibration divergence is the mean "
        "over its steps, each taken before it.",
        Table(title, ("epoch", "calibration", "held-out", "kept"), rows),
    )
    return Section("predictions", "Predictions of the last blocks", intro=intro, plots=(plot,))
