"""An optional last step of a run: the last blocks, already final, are fitted to the dense model's predictions.

Reconstruction compares hidden states. But the head reads some of their directions and not others, and no window knows
how later windows change its error. The last blocks can be compared by the predictions themselves, at the cost of the
head. This goes beyond the paper.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from reprune.engine.agreement import agree_
from reprune.engine.books import Books
from reprune.engine.failures import failure_notes
from reprune.engine.frontier import Frontier
from reprune.engine.predictions import PredictionObjective
from reprune.engine.record import block_record, conditions, exchange_record
from reprune.engine.watcher import Watcher
from reprune.engine.window import PrunedBlock
from reprune.errors import NumericalError
from reprune.math.adam import Adam, Descent
from reprune.math.reconstruction_error import Error
from reprune.math.seeds import seed_of
from reprune.model.decoder import Decoder
from reprune.model.full_speed import trim_heap
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window
from reprune.planning.sparsities import Sparsities


def distill(
    recipe: Recipe,
    solver: Adam,
    window: Window,
    decoder: Decoder,
    books: Books,
    watcher: Watcher,
    frontier: Frontier,
    sparsities: Sparsities,
) -> None:
    """Fit the last blocks to the dense model's predictions and commit the result; all windows are already durable.

    The frontier is at the end of the model, and has kept the streams that enter the first of these blocks.

    Raises:
        NumericalError: a value is not finite; all windows stay finished.
    """
    began, ranks = time.monotonic(), frontier.ranks
    traffic = replace(ranks.traffic)
    watcher.phase(window, "predictions")
    before = {record["index"]: record for record in books.block_records()}
    blocks = [_retired(decoder, books, before[index]) for index in window.blocks]
    problem = PredictionObjective(frontier, blocks, decoder.predictor(), recipe.solver.checkpointing)
    start = problem.heldout_error()
    place = f"distillation of blocks {list(window.blocks)}"
    if not start.finite:
        raise NumericalError(f"{place}: the predictions from their outputs are not finite")
    with problem.fitting(place):
        seed = seed_of(recipe.seed, "distill")
        descent = solver.descend(problem, start, seed, lambda epoch: watcher.epoch(window, epoch, solver.epochs))
    notes = failure_notes(place, descent.failures, decoder)
    for note in notes:
        watcher.note(note)
    agree_(blocks, ranks)

    watcher.phase(window, "advancing")
    tensors = [pruned.round_(decoder) for pruned in blocks]
    after = problem.heldout_error()
    decoder.release()
    if solver.guard and not after.judged <= start.judged:  # rounding lost more than the descent gained
        blocks = [_retired(decoder, books, before[index]) for index in window.blocks]
        tensors = [pruned.round_(decoder) for pruned in blocks]
        after, descent = start, replace(descent, kept_epoch=0)
    written: dict[str, str] = {}
    for pruned, rounded in zip(blocks, tensors, strict=True):
        written |= books.stage_block(pruned.index, rounded)
    del tensors
    twins = (decoder.load(index) for index in window.blocks)
    errors = frontier.repeat(twins, [pruned.block for pruned in blocks])
    if not errors[window.blocks[-1]].finite:
        raise NumericalError(f"blocks {list(window.blocks)}: their outputs are not finite after distillation")
    records = [block_record(pruned, errors[pruned.index], sparsities, recipe.choice) for pruned in blocks]
    record = _record(window, before, records, descent, (start, after), solver, notes, time.monotonic() - began)
    decoder.checkpoint.check_unchanged()
    record |= exchange_record(ranks, traffic)
    entry = {
        "window": record,
        "blocks": records,
        **conditions(ranks, recipe.device),
        "forward": frontier.probe_record(),
    }
    books.commit(window, entry, written, [])
    trim_heap()
    watcher.window_done(window, record)


def _retired(decoder: Decoder, books: Books, record: Mapping[str, Any]) -> PrunedBlock:
    """A block as it was written, with its masks, which are read off the zeros of the pruned matrices."""
    pruned = PrunedBlock(decoder.load(record["index"], books.retired(record["index"])))
    matrices = {matrix["name"]: matrix for matrix in record["matrices"]}
    for linear in pruned.block.linears:
        if (matrix := matrices.get(linear.name)) is not None:
            pruned.masks[linear.name] = linear.matrix() != 0
            if "tokens" in matrix:
                pruned.tokens[linear.name] = matrix["tokens"]
    return pruned


def _record(
    window: Window,
    before: Mapping[int, Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    descent: Descent,
    heldout: tuple[Error, Error],
    solver: Adam,
    notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """The step's entry in reprune.json; divergences are in nats per token."""
    last = window.blocks[-1]
    return {
        "index": window.index,
        "distilled": True,
        "blocks": list(window.blocks),
        "heldout_divergence": {"before": heldout[0].normalized, "after": heldout[1].normalized},
        "last_block": {
            key: {"before": before[last][key], "after": after[-1][key]}
            for key in ("relative_calibration_error", "relative_heldout_error")
        },
        "epochs": [
            {
                "epoch": epoch.number,
                "calibration_divergence": epoch.calibration,
                "heldout_divergence": epoch.heldout,
                "lr": epoch.lr,
                "relative_lr": epoch.relative_lr,
            }
            for epoch in descent.epochs
        ],
        "planned_epochs": solver.epochs,
        "kept_epoch": descent.kept_epoch,
        "guarded": solver.guard,
        "relative_lr": descent.relative_lr,
        "failures": [str(failure) for failure in descent.failures],
        "notes": list(notes),
        "seconds": round(seconds, 3),
    }
