"""The Python API: prune and resume. The command line calls these and shows what they return."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from reprune.doors.devices import check_begun_on, or_in_float32, slowness
from reprune.doors.found import find_model
from reprune.doors.generation.selfmade import self_generated, unwritten
from reprune.doors.given import Sources, listening, made_recipe
from reprune.doors.prepare import (
    check_dense,
    check_disk,
    check_distillation,
    check_memory,
    check_out,
    check_schedule,
    count_samples,
    draw,
    open_decoder,
    refusal,
    said_lacking,
    settle,
    settle_seqlen,
)
from reprune.doors.processes import check_model, check_ranks, check_versions, other_versions, ranks_or_alone
from reprune.doors.status import what_is_there
from reprune.engine.books import Books
from reprune.engine.ledger import Ledger
from reprune.engine.names import RECORD
from reprune.engine.peak_memory import peak_memory_bytes
from reprune.engine.record import full_record, versions
from reprune.engine.result import Result
from reprune.engine.run import Methods, run_windows
from reprune.engine.shared import Shared
from reprune.engine.watcher import Watcher
from reprune.errors import HalfPrecisionError, InputError, going_on
from reprune.files.local import local_path
from reprune.math.ranks import ALONE, Ranks
from reprune.model.checkpoint import Checkpoint, differing
from reprune.model.decoder import Decoder
from reprune.model.locate import locate_again
from reprune.model.undisturbed import undisturbed
from reprune.planning.overlap import sketch
from reprune.planning.paths import absolute, beside
from reprune.planning.recipe import Recipe
from reprune.planning.survey import survey
from reprune.planning.tokenizer import tokenizer_files

_KEPT = "Finished windows are kept: go on with 'reprune resume DIR', with any number of processes."


def prune(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None = None,
    pruner: str | None = None,
    sparsity: float | str | None = None,
    reconstruct: str | None = None,
    calibration: Sources | None = None,
    heldout: Sources | None = None,
    samples: int | None = None,
    seqlen: int | None = None,
    epochs: int | None = None,
    lr: float | str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    self_generate: int | None = None,
    only: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool | None = None,
    settings: str | Sequence[str] = (),
    watcher: Watcher | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Prune a decoder, reconstruct it window by window, and write the sparse model as an ordinary model folder.

    Args:
        model: a local folder, a Hub id, or a .gguf file.
        out: the folder to write; it must not exist, or be empty.
        recipe: a recipe file, its contents, a `Recipe` (such as a plan's), or a run's record, whose recipe is used.
        pruner, sparsity, ..., device: like the flags of `reprune prune`; they override the recipe.
        trust_remote_code: let Transformers run Python code that comes with the model.
        settings: one or several `key.path=value`; they override everything else.
        watcher: receives the run's events.
        ranks: the processes that a launcher has started to do the run together, each of which calls this with the same
            arguments; by default this process does it alone, and must not be one of several.

    Returns:
        The record, as in `out`/reprune.json.

    Raises:
        InputError: an argument cannot be used; nothing has been written, unless this shows only during the run, as of
            a block whose experts are all reached by no token.
        NumericalError: a computation gave unusable numbers; `resume` goes on from the last finished window.
        ChangedError: a file of the model was changed during the run; `resume` goes on once the file is as it was.
    """
    ranks = ranks_or_alone(ranks, "prune")
    flags = dict(
        pruner=pruner,
        sparsity=sparsity,
        reconstruct=reconstruct,
        calibration=calibration,
        heldout=heldout,
        samples=samples,
        seqlen=seqlen,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        self_generate=self_generate,
        only=only,
        include=include,
        exclude=exclude,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    watcher = listening(watcher, Watcher)
    made = made_recipe(model, recipe, flags, settings, watcher)
    return prune_by_recipe(made, local_path(out, "out"), watcher, ranks=ranks)


@undisturbed()
def prune_by_recipe(
    recipe: Recipe, out: Path, watcher: Watcher, shared: Shared | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Like `prune`, with a finished recipe and what the runs of a study share; only the first rank uses `out`."""
    return or_in_float32(
        recipe.precision,
        lambda one: _prune(recipe.model_copy(update={"precision": one}), out, watcher, shared, ranks),
        watcher.note,
        lambda: ranks.alone and not refusal(lambda: check_out(out)),
    )


def _prune(recipe: Recipe, out: Path, watcher: Watcher, shared: Shared | None, ranks: Ranks) -> dict[str, Any]:
    ranks.first_does(lambda: check_out(out))
    check_versions(ranks, recipe.pruner.name)
    recipe = settle(recipe, ranks)
    counts = ranks.first_does(lambda: count_samples(recipe))  # no other reads the texts
    recipe = recipe.settled(counts[0])
    check_ranks(recipe, counts[0], ranks)
    watcher.phase(None, "reading the model")
    folder = find_model(recipe.model, notify=watcher.note)  # may download it, so what needs no model comes first
    check_dense(folder)
    check_model(ranks, recipe.model, folder)
    for slow in slowness(recipe.precision, recipe.device):
        watcher.note(slow)
    decoder = open_decoder(recipe, folder)
    recipe = settle_seqlen(recipe, decoder)
    surveyed = survey(decoder, recipe.sparsities, recipe.choice)
    surveyed.check()
    for note in surveyed.notes:
        watcher.note(note)
    check_schedule(recipe, decoder)
    check_distillation(recipe, decoder)
    if lacking := said_lacking(decoder):
        watcher.note(lacking)
    writes = ranks.first_does(lambda: unwritten(recipe, decoder))
    check_memory(recipe, decoder, writes)
    ranks.first_does(lambda: check_disk(recipe, decoder, sum(counts), out))
    if writes:
        ranks.first_does(decoder.check_finite)
    made_absolute = absolute(recipe)
    ledger = Ledger(out)
    own = self_generated(recipe, decoder, watcher, ranks)

    with ExitStack() as stack:

        def begin() -> dict[str, Any]:
            watcher.phase(None, "drawing calibration samples")
            with decoder.checkpoint.digesting() as digests:  # while texts are read and tokenized
                drawn = draw(recipe, decoder, own and own.path)
                if not writes:
                    decoder.check_finite()
                weights = digests()
            fingerprint = decoder.checkpoint.fingerprint()
            decoder.checkpoint.check_unchanged()  # since its tokenizer was read
            for note in drawn.notes:
                watcher.note(note)
            job = {
                "recipe": made_absolute.model_dump(mode="json"),
                "folder": str(folder.absolute()),
                "fingerprint": fingerprint,
                "weights": weights,
                "versions": versions(recipe.pruner.name),
                "windows": len(Methods.of(recipe, len(decoder)).steps),
                "data": {"sha256": drawn.sha256, "sources": [vars(source) for source in drawn.sources]},
                "self_generation": own and own.record,
                "sketch": sketch(torch.cat([drawn.calibration, drawn.heldout])),
            }
            stack.enter_context(ledger)
            check_out(out)  # once more: no other process can begin there now
            ledger.begin(job, drawn.calibration, drawn.heldout)
            return job

        try:
            return _finish(made_absolute, decoder, ledger, ranks.first_does(begin), watcher, shared, ranks)
        except HalfPrecisionError:
            if ranks.first and not ledger.lines():  # no window is finished: there is nothing to resume
                ledger.clear()
                with suppress(OSError):
                    out.rmdir()
            raise


def resume(
    out: str | os.PathLike[str], *, watcher: Watcher | None = None, ranks: Ranks | None = None
) -> dict[str, Any]:
    """Go on with an interrupted run; on a CPU the result is bit for bit the same as without the interruption.

    This holds for the same number of ranks; with another number, or on a GPU, sums are computed in another order.

    Args:
        out: the folder of the run.
        watcher: receives the run's events.
        ranks: as for `prune`.

    Returns:
        The record, as for `prune`.

    Raises:
        InputError: there is no unfinished run in `out`, the model or a version has changed since it began, or this
            machine lacks its device.
        NumericalError: as for `prune`.
    """
    return resume_sharing(out, listening(watcher, Watcher), None, ranks_or_alone(ranks, "resume"))


@undisturbed()
def resume_sharing(
    out: str | os.PathLike[str],
    watcher: Watcher,
    shared: Shared | None,
    ranks: Ranks = ALONE,
    given: Recipe | None = None,
) -> dict[str, Any]:
    """Like `resume`, with what the runs of a study share, and the recipe that the study asks for now."""
    ledger = Ledger(local_path(out, "out"), begun=True)
    job = ranks.first_does(lambda: _unfinished(ledger, out))
    recipe = Recipe.model_validate(job["recipe"])
    # What needs no model comes first, as the model may have to be downloaded, and all of it is read.
    _check_versions(job["versions"], out, recipe.pruner.name)
    check_begun_on(recipe.device, out)
    check_ranks(
        recipe, sum(source["count"] for source in job["data"]["sources"] if source["role"] == "calibration"), ranks
    )
    if recipe.trust_remote_code and given is None:
        watcher.note(f"{out} was begun with trust_remote_code: Python code that comes with the model is run")
    if given is not None and recipe.trust_remote_code > given.trust_remote_code:
        raise InputError(
            f"{out}: this run began with trust_remote_code; give --trust-remote-code if you trust the model's code."
        )
    folder = locate_again(recipe.model, Path(job["folder"]), given and given.model, notify=watcher.note)
    for slow in slowness("auto", recipe.device):  # the precision is settled
        watcher.note(slow)
    checkpoint = Checkpoint(folder)
    changed = min(differing(job["weights"], checkpoint.digests()), default=None)
    if changed is not None:  # before any code that comes with it is run
        raise InputError(
            f"{folder}: not the model that this run began with: {changed} differs; put the original back, or start a "
            "new run."
        )
    decoder = open_decoder(recipe, folder)
    checkpoint.check_unchanged()
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(ledger)
            ledger.check()

        ranks.first_does(enter)
        return _finish(recipe, decoder, ledger, job, watcher, shared, ranks)


def _unfinished(ledger: Ledger, out: str | os.PathLike[str]) -> dict[str, Any]:
    """The job of the unfinished run in `out`; raises `InputError` if there is nothing to resume."""
    if not ledger.exists:
        if (ledger.result / RECORD).exists():
            raise InputError(f"{out}: this run is finished; there is nothing to resume.")
        if said := what_is_there(ledger.result):
            raise InputError(f"{out}: {said}.")
    job = ledger.job()
    try:
        Recipe.model_validate(job["recipe"])
    except ValueError as error:
        # In another version, recipes may have other keys. The pruner, and so its package, is then unknown.
        _check_versions({name: job["versions"].get(name, "none") for name in versions()}, out)
        raise ledger.damaged_job(str(error)) from None
    return job


def _check_versions(began: Mapping[str, str], out: str | os.PathLike[str], *pruners: str) -> None:
    """Raise `InputError` if the versions that a run began with are other than those that are installed now."""
    if said := other_versions(began, versions(*pruners), "now"):
        raise InputError(f"{out}: this run began with {said}; install that again to resume, or start a new run.")


def _finish(
    recipe: Recipe,
    decoder: Decoder,
    ledger: Ledger,
    job: dict[str, Any],
    watcher: Watcher,
    shared: Shared | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """Do what is left of a run whose ledger has been entered, on the first rank."""
    if shared is not None:
        decisive = recipe.solver.samples_at_a_time, recipe.precision, recipe.device, recipe.trust_remote_code
        shared.serve((job["fingerprint"], job["data"]["sha256"], recipe.pruner.statistics, *decisive))
    began = time.monotonic()
    result = Result(ledger.result, decoder)
    first = int(job["data"]["sources"][0]["count"]) if recipe.pruner.statistics == "first" else None
    books = Books(ledger, result, ranks)
    with going_on(_KEPT):
        run_windows(recipe, decoder, books, watcher, shared, first)
        peaks = ranks.each_tells(peak_memory_bytes(recipe.device))
        return ranks.first_does(lambda: _write_(recipe, ledger, result, job, watcher, began, peaks))


def _write_(
    recipe: Recipe,
    ledger: Ledger,
    result: Result,
    job: dict[str, Any],
    watcher: Watcher,
    began: float,
    peaks: Sequence[dict[str, int]],
) -> dict[str, Any]:
    """Write what is left of the result of a run whose windows are all finished; returns its record."""
    watcher.phase(None, "writing the result")
    ledger.settle()
    written = result.write_outside()
    files: set[str] = set()  # further files that the model is loaded from
    if recipe.trust_remote_code:
        files = tokenizer_files(result.dense) | {file.name for file in result.dense.glob("*.py")}
    copied, left_out = result.linked(files)
    if copied:
        watcher.note(
            f"copied into the result from outside the model's folder, which links to them: {', '.join(copied)}"
        )
    for name in left_out:
        watcher.note(
            f"{name} is not in the result: in the model's folder it is a link to a file that may not be the model's"
        )
    for name in (name for name in result.unreadable(files) if name not in left_out):
        watcher.note(f"{name} is not in the result: it cannot be read; check its permissions")
    lines = ledger.lines()
    seconds = max(time.monotonic() - began, sum(line["window"]["seconds"] for line in lines))
    # In a short run, memory may peak while the weights outside the blocks are written.
    peaks = [peak_memory_bytes(recipe.device), *peaks[1:]]
    record = full_record(recipe, job, lines, seconds, peaks)
    written |= {name: digest for line in lines for name, digest in line["files"].items()}
    record = result.finish(record, beside(recipe, ledger.result, Path(job["folder"])).to_yaml(), written, files)
    ledger.clear()
    return record
