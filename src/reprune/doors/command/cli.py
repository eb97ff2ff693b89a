"""The command line: parses arguments, calls the API, shows what comes back. Decides nothing by itself.

Exit codes: 0 done, 2 a usage or input error (one message, no traceback), 1 anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from reprune import __version__
from reprune.doors.command.arguments import separate_sources
from reprune.doors.command.evaluate import evaluate
from reprune.doors.command.generate import generate
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
    Only,
    Out,
    Pruner,
    Quiet,
    RankTimeout,
    RecipeFile,
    Reconstruct,
    Samples,
    Seed,
    SelfGenerate,
    Seqlen,
    Settings,
    Sparsity,
    Trust,
    Verbose,
    exit_codes,
    flags_of,
    processes,
)
from reprune.doors.command.study import study
from reprune.doors.printable import complain, unread
from reprune.errors import InputError, check_system
from reprune.math.launch import launched
from reprune.model.garbage import few_searches

_TOGETHER = ("prune", "resume", "generate")
"""The commands that several processes can run together."""

app = typer.Typer(
    name="reprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"reprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prune a decoder LLM after training and reconstruct, block by block, what the pruning broke."""
    if context.invoked_subcommand not in _TOGETHER and launched():
        with exit_codes():
            raise InputError(f"{context.invoked_subcommand}: runs in one process; start it without torchrun.")


@app.command(short_help="Prune and reconstruct MODEL; write a model folder.")
def prune(
    model: Model,
    out: Out,
    recipe: RecipeFile = None,
    pruner: Pruner = None,
    sparsity: Sparsity = None,
    reconstruct: Reconstruct = None,
    calibration: Calibration = None,
    heldout: Heldout = None,
    self_generate: SelfGenerate = None,
    samples: Samples = None,
    seqlen: Seqlen = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    only: Only = None,
    include: Include = None,
    exclude: Exclude = None,
    device: Device = None,
    settings: Settings = None,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    rank_timeout: RankTimeout = None,
) -> None:
    """Prune MODEL, reconstruct it window by window, and write a sparse model folder to DIR."""
    flags = flags_of(locals(), "model", "out", "quiet", "verbose", "rank_timeout")
    with exit_codes(out), processes(rank_timeout) as ranks:
        from reprune.doors.api import prune as prune_model
        from reprune.doors.command.views import show_result
        from reprune.doors.progress import watching

        with watching(quiet or not ranks.first, verbose) as watcher:
            record = prune_model(model, out, watcher=watcher, ranks=ranks, **flags)
        if ranks.first and not quiet:
            show_result(record, out)


@app.command(short_help="Show what prune would do; load no weights.")
def plan(
    model: Model,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check that prune could write this folder and has room.")
    ] = None,
    recipe: RecipeFile = None,
    pruner: Pruner = None,
    sparsity: Sparsity = None,
    reconstruct: Reconstruct = None,
    calibration: Calibration = None,
    heldout: Heldout = None,
    self_generate: SelfGenerate = None,
    samples: Samples = None,
    seqlen: Seqlen = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    only: Only = None,
    include: Include = None,
    exclude: Exclude = None,
    device: Device = None,
    settings: Settings = None,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    on: Annotated[
        str | None,
        typer.Option(metavar="MACHINE", help="Forecast for this GPU: h100, a100 or 4090. [this machine]"),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(metavar="N", help="Forecast for N processes, a GPU or machine each. [1]")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What they exchange over: local, nvlink, 100g. [local; with --on: that machine's up to 8, else 100g]",
        ),
    ] = None,
) -> None:
    """Show what `prune` with the same flags would do, and forecast its time and memory; loads no weights.

    The exit code is 2 if `prune` would refuse. Texts on this machine are read; those of the Hub are not."""
    flags = flags_of(locals(), "model", "out", "quiet")
    with exit_codes():
        from reprune.doors.command.views import show_plan
        from reprune.doors.planned import plan as plan_run
        from reprune.doors.progress import watching

        with watching(quiet, verbose=False) as watcher:
            planned = plan_run(model, out, watcher=watcher, **flags)
        if not quiet:
            show_plan(planned)
        if planned.refusals:
            raise InputError("\n".join(planned.refusals))


@app.command(short_help="Go on with an interrupted run.")
def resume(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an interrupted run.")],
    quiet: Quiet = False,
    verbose: Verbose = False,
    rank_timeout: RankTimeout = None,
) -> None:
    """Go on with an interrupted run, from the last finished window."""
    with exit_codes(directory), processes(rank_timeout) as ranks:
        from reprune.doors.api import resume as resume_run
        from reprune.doors.command.views import show_result
        from reprune.doors.progress import watching

        with watching(quiet or not ranks.first, verbose) as watcher:
            record = resume_run(directory, watcher=watcher, ranks=ranks)
        if ranks.first and not quiet:
            show_result(record, directory)


@app.command()
def status(directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]) -> None:
    """Show how far a run is."""
    with exit_codes():
        from reprune.doors.command.views_status import show_status
        from reprune.doors.status import status as status_of

        show_status(status_of(directory), directory)


@app.command(short_help="Check a result against its record.")
def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run.")],
    trust_remote_code: Trust = False,
) -> None:
    """Check that a result is what its record says: files, sparsity and pattern, numbers, a forward pass."""
    with exit_codes():
        from reprune.doors.command.views import show_check
        from reprune.doors.verify import verify as verify_result

        if not verify_result(directory, trust_remote_code=trust_remote_code, notify=show_check).passed:
            raise typer.Exit(1)


app.command(short_help="Measure perplexity, errors by block, zero-shot accuracy.")(evaluate)
app.command(short_help="Have MODEL write texts to calibrate on.")(generate)


@app.command(short_help="Write one HTML file on a run or a study.")
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that prune or study wrote.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The file to write. [DIR/report.html]")] = None,
    quiet: Quiet = False,
) -> None:
    """Write one HTML file on a run or a study: a verdict in words, figures, tables, and how to reproduce it."""
    with exit_codes():
        from reprune.doors.report.write import report as write_report

        file = write_report(directory, out)
        if not quiet:
            print(f"report  {file}")


app.command(short_help="Prune and measure MODEL with every pruner and rung.")(study)


@app.command(short_help="Prune a real model, Gemma 3 270M, in minutes.")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the sparse models go.")] = Path("demo-output"),
) -> None:
    """Prune a real model, Gemma 3 270M, at 50 % and show what reconstruction gains (some minutes on a CPU)."""
    with exit_codes():
        from reprune.doors.demo.demo import demo as run_demo

        run_demo(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `reprune` with these arguments, by default those of the process."""
    try:
        check_system()
    except InputError as error:
        complain(f"error: {error}")
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")  # a character that the terminal cannot show must not end a run
    try:
        _run(separate_sources(list(sys.argv[1:] if arguments is None else arguments)))
    except OSError as error:  # of standard output: commands report those of files themselves
        unread()  # so that the rest is not tried once more
        if not isinstance(error, BrokenPipeError):
            complain(f"error: standard output: {error.strerror}")
        sys.exit(1)


def _run(arguments: list[str]) -> None:
    """Run a command, and write what waits to be written, such as help."""
    with few_searches():
        try:
            app(args=arguments, prog_name="reprune")
        except SystemExit:  # as nearly every command ends
            if sys.stdout is not None:  # it is None if the process was started without one
                sys.stdout.flush()
            raise
