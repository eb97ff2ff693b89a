"""The command line: parses arguments, calls the API, shows what comes back. Decides nothing by itself.

Exit codes: 0 done, 2 a usage or input error (one message, no traceback), 1 anything else.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from reprune import __version__
from reprune.doors.arguments import separate_sources
from reprune.errors import InputError, RepruneError

app = typer.Typer(
    name="reprune",
    help="Prune a decoder LLM after training and reconstruct, block by block, what the pruning broke.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A local folder, a Hub id, or a .gguf file.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write; new or empty.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe (YAML); flags go over it.")]
Pruner = Annotated[str | None, typer.Option(metavar="NAME", help="magnitude, wanda or sparsegpt. [sparsegpt]")]
Sparsity = Annotated[str | None, typer.Option(metavar="S", help="A fraction such as 0.5, or N:M such as 2:4. [0.5]")]
Reconstruct = Annotated[str | None, typer.Option(metavar="RUNG", help="LR, BR, BR+GP or BR+GP+CR. [BR+GP]")]
Calibration = Annotated[
    list[str] | None,
    typer.Option(metavar="SOURCE[=COUNT] ...", help="c4, wikitext2, ptb, manual, a file, or a Hub data set. [c4]"),
]
Heldout = Annotated[
    list[str] | None,
    typer.Option(metavar="SOURCE[=COUNT] ...", help="Held-out text. [an eighth again of the calibration sources]"),
]
Samples = Annotated[int | None, typer.Option(metavar="N", help="Calibration samples. [256]")]
Seqlen = Annotated[int | None, typer.Option(metavar="T", help="Tokens a sample. [1024, or the model's limit]")]
Epochs = Annotated[int | None, typer.Option(metavar="E", help="Epochs a window. [10]")]
Lr = Annotated[float | None, typer.Option("--lr", metavar="X", help="Learning rate, falling to zero. [2e-4]")]
BatchSize = Annotated[int | None, typer.Option(metavar="B", help="Samples a step. [8]")]
Seed = Annotated[int | None, typer.Option(metavar="S", help="Decides everything random. [0]")]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N. [auto]")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, such as schedule.size=3. Repeatable."),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print every epoch and step.")]


@contextmanager
def _errors(run: Path | None = None) -> Iterator[None]:
    """Turn errors into one message and the exit code that the contract names.

    Args:
        run: the folder of a run that may be gone on with.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except RepruneError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"interrupted{_hint(run)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{place}{_hint(run)}", file=sys.stderr)
        raise typer.Exit(1) from None


def _hint(run: Path | None) -> str:
    if run is None or not (run / ".reprune" / "run.json").exists():
        return ""
    return f"; finished windows are kept, go on with: reprune resume {run}"


def _print_version(asked: bool) -> None:
    if asked:
        print(f"reprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Prune a decoder LLM after training and reconstruct, block by block, what the pruning broke."""


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
    samples: Samples = None,
    seqlen: Seqlen = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    device: Device = None,
    settings: Settings = None,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prune MODEL, reconstruct it window by window, and write a sparse model folder to DIR."""
    with _errors(out):
        from reprune.doors.api import prune_by_recipe
        from reprune.doors.progress import watching
        from reprune.doors.views import show_result

        made = _recipe(model, recipe, settings, **_given(locals()))
        with watching(quiet, verbose) as watcher:
            record = prune_by_recipe(made, out, watcher)
        if not quiet:
            show_result(record, out)


@app.command(short_help="Show what prune would do; load no weights.")
def plan(
    model: Model,
    recipe: RecipeFile = None,
    pruner: Pruner = None,
    sparsity: Sparsity = None,
    reconstruct: Reconstruct = None,
    calibration: Calibration = None,
    heldout: Heldout = None,
    samples: Samples = None,
    seqlen: Seqlen = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    device: Device = None,
    settings: Settings = None,
    trust_remote_code: Trust = False,
) -> None:
    """Show what `prune` with the same flags would do; loads no weights. Exit code 2 if it would refuse."""
    with _errors():
        from reprune.doors.api import plan_by_recipe
        from reprune.doors.progress import watching
        from reprune.doors.views import show_plan

        made = _recipe(model, recipe, settings, **_given(locals()))
        with watching(quiet=False, verbose=False) as watcher:
            planned = plan_by_recipe(made, watcher)
        show_plan(planned)
        if planned.survey.refusals:
            raise typer.Exit(2)


@app.command(short_help="Go on with an interrupted run.")
def resume(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an interrupted run.")],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Go on with an interrupted run, from the last finished window."""
    with _errors(directory):
        from reprune.doors.api import resume as resume_run
        from reprune.doors.progress import watching
        from reprune.doors.views import show_result

        with watching(quiet, verbose) as watcher:
            record = resume_run(directory, watcher=watcher)
        if not quiet:
            show_result(record, directory)


@app.command(short_help="Show how far a run is.")
def status(directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]) -> None:
    """Show how far a run is."""
    with _errors():
        from reprune.doors.api import status as status_of
        from reprune.doors.views import show_status

        show_status(status_of(directory), directory)


@app.command(short_help="Measure the perplexity of MODEL on a text.")
def evaluate(
    model: Model,
    text: Annotated[str, typer.Option("--text", metavar="SOURCE", help="The text; of a data set, its test split.")],
    seqlen: Annotated[
        int | None, typer.Option(metavar="T", help="Tokens a window. [2048, or the model's limit]")
    ] = None,
    windows: Annotated[int | None, typer.Option(metavar="N", help="Only the first N windows. [all]")] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="P", help="auto, float32 or bfloat16.")] = "auto",
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Measure the perplexity of MODEL on a text, over non-overlapping windows."""
    with _errors():
        from reprune.doors.evaluate import evaluate as evaluate_model
        from reprune.doors.progress import counting
        from reprune.doors.views import show_perplexity

        with counting("windows", quiet) as progress:
            result = evaluate_model(
                model,
                text,
                seqlen=seqlen,
                max_windows=windows,
                device=device,
                precision=precision,
                trust_remote_code=trust_remote_code,
                progress=progress,
                notify=lambda text: None if quiet else print(text),
            )
        show_perplexity(result, quiet)


@app.command(short_help="Prune a real model, Gemma 3 270M, in minutes.")
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the sparse models go.")] = Path(
        "demo-output"
    ),
) -> None:
    """Prune a real model, Gemma 3 270M, at 50 % and show what reconstruction gains (some minutes on a CPU)."""
    with _errors():
        from reprune.doors.demo import demo as run_demo

        run_demo(out)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The flags that belong to the recipe, out of a command's arguments; a switch that is off was not given."""
    names = [
        *("pruner", "sparsity", "reconstruct", "calibration", "heldout", "samples", "seqlen"),
        *("epochs", "lr", "batch_size", "seed", "device", "trust_remote_code"),
    ]
    return {name: arguments[name] for name in names if arguments[name] is not False}


def _recipe(model: str, file: Path | None, settings: Sequence[str] | None, **flags: Any) -> Any:
    from reprune.doors.prepare import nested_flags
    from reprune.planning.recipe import read_recipe, resolve_recipe

    content = read_recipe(file) if file is not None else {}
    return resolve_recipe(model, content, nested_flags(**flags), settings or ())


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `reprune`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, ends with a hint
    app(args=separate_sources(list(sys.argv[1:] if arguments is None else arguments)), prog_name="reprune")
