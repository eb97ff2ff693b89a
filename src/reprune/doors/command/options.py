"""The options that several commands take, and the exit codes that all of them end with. Knows no command.

Exit codes: 0 done, 2 a usage or input error (one message, no traceback), 1 anything else.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from reprune.doors.command.interrupts import heed_interrupts, heed_no_more
from reprune.doors.printable import complain, unread
from reprune.engine.names import FOLDER
from reprune.errors import InputError, RepruneError, lacks_temporary_folder, out_of_memory

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A local folder, a Hub id (or ID@REVISION), or a .gguf file.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")]
RecipeFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe file (YAML); flags override it.")]
Pruner = Annotated[
    str | None, typer.Option(metavar="NAME", help="magnitude, wanda, sparsegpt, or one from a package. [sparsegpt]")
]
Sparsity = Annotated[
    str | None, typer.Option(metavar="S", help="Share of zeros, or N:M: 2:4 keeps 2 of every 4. [0.5]")
]
Reconstruct = Annotated[str | None, typer.Option(metavar="RUNG", help="LR, BR, BR+GP, BR+GP+CR or auto. [BR+GP]")]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[=COUNT] ...", help="c4, wikitext2, ptb, manual, a file or folder, or a Hub data set. [c4]"
    ),
]
Heldout = Annotated[
    list[str] | None,
    typer.Option(metavar="SOURCE[=COUNT] ...", help="Held-out samples. [from --calibration, an eighth as many]"),
]
SelfGenerate = Annotated[
    int | None,
    typer.Option(metavar="N", help="Add N samples that MODEL writes; without --calibration, use only these."),
]
Samples = Annotated[int | None, typer.Option(metavar="N", help="Calibration samples. [256]")]
Seqlen = Annotated[int | None, typer.Option(metavar="T", help="Tokens per sample. [1024, or the model's limit]")]
Epochs = Annotated[int | None, typer.Option(metavar="E", help="Epochs per window. [10]")]
Lr = Annotated[
    str | None,
    typer.Option(
        metavar="X",
        help="Learning rate, decaying to zero; 1% is relative to the weights. [2e-4; standardized loss: 1%]",
    ),
]
BatchSize = Annotated[int | None, typer.Option(metavar="B", help="Samples per step. [8]")]
Seed = Annotated[int | None, typer.Option(metavar="S", help="Seed of everything random. [0]")]
Only = Annotated[str | None, typer.Option(metavar="PART", help="Prune all linears, or only attention or mlp. [all]")]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME ...", help="Prune only these linears: down_proj, mlp.*, 0.* (block 0). [all]"),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="NAME ...", help="Leave these linears dense; NAME as for --include.")
]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N. [auto]")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE ...", help="Set any keys of the recipe, such as schedule.size=3."),
]
ZeroShotData = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Local rows of the tasks, JSON lines. [from the Hub]")
]
ZeroShotLimit = Annotated[int | None, typer.Option(metavar="N", help="Only the first N rows of a task. [all]")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print every epoch and step.")]
RankTimeout = Annotated[
    float | None,
    typer.Option(metavar="S", min=1, max=1e9, help="Under torchrun: seconds to wait for another process. [600]"),
]

_LESS_MEMORY = (
    "; 'reprune plan' forecasts a run's memory, which --set solver.micro_batch_size=1, solver.compact=true or, in "
    "windows of several blocks, solver.checkpointing=true lowers"
)


@contextmanager
def exit_codes(run: Path | None = None, way_on: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn errors into one message and an exit code (see the module).

    Args:
        run: the folder of a run that can be resumed.
        way_on: tells how to go on with anything else, if there is something to go on with.
    """
    hint = partial(_hint, way_on or partial(_resume, run))
    try:
        heed_interrupts(lambda: _say_interrupted(hint()))
        yield
    except InputError as error:
        complain(f"error: {error}")
        raise typer.Exit(2) from None
    except RepruneError as error:
        complain(f"error: {error}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        way = hint()
        heed_no_more()
        _say_interrupted(way)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        unread()
        raise typer.Exit(1) from None
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        way = "; set TMPDIR to a folder that can be written to" if lacks_temporary_folder(error) else ""
        complain(f"error: {error.strerror or error}{place}{way}{hint()}")
        raise typer.Exit(1) from None
    except Exception as error:
        if (said := out_of_memory(error)) is None:
            if way := hint():
                error.add_note(way.removeprefix("; "))  # the traceback ends with it
            raise
        complain(f"error: {said}{_LESS_MEMORY if run is not None else ''}{hint()}")
        raise typer.Exit(1) from None
    finally:
        heed_no_more()


def _say_interrupted(hint: str) -> None:
    complain(f"interrupted{hint}")


def _hint(way_on: Callable[[], str]) -> str:
    with suppress(OSError):  # the folder cannot be read
        return way_on()
    return ""


def _resume(run: Path | None) -> str:
    if run is not None and (run / FOLDER / "run.json").exists():
        return f"; finished windows are kept, go on with: reprune resume {shlex.quote(str(run))}"
    return ""


def processes(timeout: float | None) -> AbstractContextManager[Any]:
    """The processes that run the command together; one, unless a launcher has started more."""
    from reprune.doors.command.launched import TIMEOUT, ranks_of_launch

    return ranks_of_launch(TIMEOUT if timeout is None else timeout)


def flags_of(arguments: Mapping[str, Any], *own: str) -> dict[str, Any]:
    """A command's arguments except its own, without those that are not given; a switch that is off is not given."""
    return {name: value for name, value in arguments.items() if not (name in own or value is None or value is False)}
