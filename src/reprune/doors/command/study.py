"""The `reprune study` command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from reprune.doors.command.options import (
    BatchSize,
    Calibration,
    Device,
    Epochs,
    Exclude,
    Heldout,
    Include,
    Lr,
    Model,
    Quiet,
    RecipeFile,
    Samples,
    Seqlen,
    Settings,
    Sparsity,
    Trust,
    ZeroShotData,
    ZeroShotLimit,
    exit_codes,
    flags_of,
)
from reprune.doors.printable import complain


def study(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The study's folder; new, empty, or of the same study.")],
    pruners: Annotated[
        list[str] | None, typer.Option(metavar="NAME ...", help="Pruners. [magnitude wanda sparsegpt]")
    ] = None,
    rungs: Annotated[
        list[str] | None, typer.Option(metavar="RUNG ...", help="Rungs. [LR BR BR+GP BR+GP+CR auto]")
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option(metavar="S ...", help="Seeds. [0]")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PART ...", help="Which linears are pruned: all, attention, mlp. [all]")
    ] = None,
    self_generate: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N ...",
            help="Add N samples that MODEL writes; with neither --calibration nor 0, use only these. [0]",
        ),
    ] = None,
    recipe: RecipeFile = None,
    sparsity: Sparsity = None,
    calibration: Calibration = None,
    heldout: Heldout = None,
    samples: Samples = None,
    seqlen: Seqlen = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    include: Include = None,
    exclude: Exclude = None,
    device: Device = None,
    settings: Settings = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text", metavar="SOURCE ...", help="Texts to measure perplexity and test errors on. [wikitext2]"
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Windows of the texts, as in evaluate: paper, wanda, short, gptq, published. [paper]"
        ),
    ] = None,
    text_seqlen: Annotated[
        int | None, typer.Option(metavar="T", help="Tokens per window of a text. [the protocol's]")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(metavar="N", help="Only a text's first N windows. [all; of c4 256]")
    ] = None,
    zero_shot: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK ...", help="Measure zero-shot accuracy on these tasks too."),
    ] = None,
    zero_shot_data: ZeroShotData = None,
    zero_shot_limit: ZeroShotLimit = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep each cell's sparse model.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS]", help="Run cells on a Ray cluster. [RAY_ADDRESS, or this machine alone]"),
    ] = None,
    ray_cpus: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --ray, cores per cell. [PyTorch's threads here; beside a GPU at most 4]"),
    ] = None,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print every window.")] = False,
) -> None:
    """Prune MODEL with every pruner and rung, measure each, and write tables and figures to DIR.

    Run again with the same flags, it goes on where it stopped; with more values of an axis, it does those too.
    """
    flags = flags_of(locals(), "model", "out", "quiet", "verbose")
    with exit_codes(way_on=partial(_hint, out)):
        from reprune.doors.command.views_study import StudyFailures, StudyLines, show_study
        from reprune.doors.study.run import study as run_study

        watcher = StudyFailures() if quiet else StudyLines(verbose)
        record = run_study(model, out, watcher=watcher, **flags)
        if not quiet:
            show_study(record, out)
        if watcher.failed:
            for cell in watcher.failed:
                complain(f"error: cell {cell['name']}: {cell['error']}")
            complain(f"{len(watcher.failed)} of {watcher.cells} cells failed{_hint(out, 'tries them again')}")
            raise typer.Exit(1)


def _hint(out: Path, does: str = "goes on from there") -> str:
    """How to go on, if there is a study to go on with."""
    return f"; what is done is kept, the same command {does}" if (out / "study.json").exists() else ""
