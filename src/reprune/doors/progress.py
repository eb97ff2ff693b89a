"""Shows a run to a person: a live bar on a terminal, plain lines elsewhere. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from reprune.engine.record import peak_memory_bytes
from reprune.engine.watcher import Watcher
from reprune.math.solver import Epoch
from reprune.planning.schedule import Window
from reprune.planning.survey import ranges

if TYPE_CHECKING:
    from reprune.doors.api import Plan, Status
    from reprune.doors.perplexity import Perplexity

_HEAD = (
    "errors: ||sparse - target||² / ||target||² of a window's outputs, before > after\n"
    f"{'window':>7}  {'blocks':<9} {'calibration error':<17}  {'held-out error':<17} {'time':>7} {'left':>7}   memory"
)


def console() -> Console:
    """Where output goes; off a terminal, lines are not broken."""
    return Console(highlight=False, soft_wrap=True)


@contextmanager
def watching(quiet: bool, verbose: bool) -> Iterator[Watcher]:
    """A watcher that shows a run, closed at the end however it ends."""
    if quiet:
        yield Watcher()
        return
    output = console()
    if not output.is_terminal:
        yield _Lines(output, verbose)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[memory]}"),
        console=output,
        transient=True,
    )
    with bar:
        yield _Bar(output, verbose, bar)


class _Lines(Watcher):
    """One line a window."""

    def __init__(self, output: Console, verbose: bool) -> None:
        self._output = output
        self._verbose = verbose
        self._windows = 0
        self._left = 0
        self._seconds: list[float] = []

    def started(self, windows: int, done: int) -> None:
        self._windows, self._left = windows, windows - done
        if done:
            self._output.print(f"going on: {done} of {windows} windows are finished")

    def phase(self, window: Window | None, what: str) -> None:
        if window is None:
            self._output.print(what, style="dim")
        elif self._verbose:
            self._output.print(f"         {what}", style="dim")

    def epoch(self, window: Window, epoch: Epoch, of: int) -> None:
        if self._verbose:
            self._output.print(
                f"         epoch {epoch.number}/{of}: calibration {percent(epoch.calibration)}, "
                f"held-out {percent(epoch.heldout)}",
                style="dim",
            )

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        self._left -= 1
        self._seconds.append(record["seconds"])
        left = self._left * sum(self._seconds) / len(self._seconds)
        if len(self._seconds) == 1:
            self._output.print(_HEAD, style="bold")
        blocks = f"{window.blocks[0]}" if len(window.blocks) == 1 else f"{window.blocks[0]}-{window.blocks[-1]}"
        self._output.print(
            f"{f'{window.index + 1}/{self._windows}':>7}  {blocks:<9} "
            f"{_change(record['relative_calibration_error']):<17}  {_change(record['relative_heldout_error']):<17} "
            f"{clock(record['seconds']):>7} {clock(left):>7} {size(peak_memory_bytes()['host']):>8}"
        )

    def note(self, text: str) -> None:
        self._output.print(f"note: {text}", style="yellow")


@final
class _Bar(_Lines):
    """The same lines, and below them a bar with what is being done now."""

    def __init__(self, output: Console, verbose: bool, bar: Progress) -> None:
        super().__init__(output, verbose)
        self._bar = bar
        self._task = bar.add_task("starting", total=None, memory="")

    def started(self, windows: int, done: int) -> None:
        super().started(windows, done)
        self._bar.update(self._task, total=windows, completed=done)

    def phase(self, window: Window | None, what: str) -> None:
        self._show(what)
        if window is not None:
            super().phase(window, what)

    def epoch(self, window: Window, epoch: Epoch, of: int) -> None:
        super().epoch(window, epoch, of)
        self._show(f"epoch {epoch.number}/{of}")

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        super().window_done(window, record)
        self._bar.advance(self._task)

    def _show(self, what: str) -> None:
        self._bar.update(self._task, description=f"{what:<14}", memory=f"peak {size(peak_memory_bytes()['host'])}")


@contextmanager
def counting(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many of something are done; silent off a terminal."""
    output = console()
    if quiet or not output.is_terminal:
        yield lambda done, of: None
        return
    columns = (TextColumn(what), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=output, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def show_result(record: Mapping[str, Any], out: Path) -> None:
    """What a finished run has made."""
    output = console()
    last = record["blocks"][-1]
    output.print()
    output.print(f"sparse model   {out}")
    output.print(f"sparsity       {percent(record['sparsity'])} of {len(record['blocks'])} blocks' pruned matrices")
    output.print("last block     its error against the dense model, and that over its power")
    for kind, name in (("calibration", "calibration"), ("heldout", "held-out")):
        value, share = last[f"{kind}_error"], last[f"relative_{kind}_error"]
        output.print(f"  {name:<12} {value:.4g} ({percent(share)})")
    memory = record["peak_memory_bytes"]
    device = f", {size(memory['device'])} on the device" if memory["device"] else ""
    output.print(f"time, memory   {clock(record['seconds'])}, peak {size(memory['host'])}{device}")
    output.print(f"recipe, record {out / 'recipe.yaml'}, {out / 'reprune.json'}")


def show_status(status: Status, out: Path) -> None:
    """How far a run is."""
    output = console()
    recipe = status.recipe
    output.print(f"{out}: {recipe['model']}, {recipe['pruner']['name']} {recipe['sparsity']}, {recipe['reconstruct']}")
    output.print(f"{status.windows_done} of {status.windows} windows finished")
    if status.last is not None:
        output.print(
            f"last: blocks {status.last['blocks']}, relative error calibration "
            f"{percent(status.last['relative_calibration_error']['after'])}, held-out "
            f"{percent(status.last['relative_heldout_error']['after'])}"
        )
    output.print("finished" if status.finished else f"unfinished; go on with: reprune resume {out}")


def show_perplexity(result: Perplexity, quiet: bool) -> None:
    """A perplexity with its protocol, or the bare number."""
    output = console()
    if quiet:
        output.print(f"{result.perplexity:.4f}")
        return
    output.print(f"perplexity {result.perplexity:.4f}")
    start = "BOS + " if result.bos else ""
    width = result.seqlen - result.bos
    output.print(f"model      {result.model}, products in {result.precision}")
    output.print(f"text       {result.text}, sha256 {result.text_sha256[:12]}")
    output.print(
        f"windows    {result.windows:,} of {result.seqlen} tokens ({start}{width}), not overlapping\n"
        f"predicted  {result.tokens:,} tokens"
    )


def show_plan(plan: Plan) -> None:
    """What a run would do."""
    output = console()
    recipe, survey = plan.recipe, plan.survey
    share = survey.pruned_weights / plan.weights
    output.print(f"model      {recipe.model}: {plan.weights:,} weights in {size(plan.bytes)} of safetensors")
    output.print(
        f"prune      {recipe.pruner.name} at {recipe.sparsity}: {survey.pruned_weights:,} weights ({percent(share)})"
    )
    schedule, solver = recipe.schedule, recipe.solver
    fitted = "no solver" if solver.name == "none" else f"{solver.name}, {solver.epochs} epochs"
    output.print(f"rung       {recipe.reconstruct}: {recipe.teacher} teacher; {fitted}")
    output.print(f"schedule   {len(plan.schedule)} windows of size {schedule.size}, stride {schedule.stride}")
    output.print(f"samples    {recipe.samples} of {recipe.seqlen} tokens from {', '.join(recipe.calibration)}")
    output.print(f"device     {recipe.device}, products in {recipe.precision}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("blocks", "linear group", "rows x columns"):
        table.add_column(column)
    for blocks, group, shapes in _alike(plan):
        table.add_row(blocks, group, shapes)
    output.print(table)
    if unknown := [block.index for block in survey.blocks if not block.groups_known]:
        output.print(
            f"note       blocks {ranges(unknown)} do not run without weights: their groups show when they are loaded"
        )
    for refusal in survey.refusals:
        output.print(f"refused    {refusal}", style="red")


def _alike(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """The linear groups, blocks that are alike in one row."""
    rows: dict[tuple[str, str], list[int]] = {}
    for block in plan.survey.blocks:
        for names in block.groups:
            shapes = ", ".join("{} x {}".format(*block.shapes[name]) for name in names)
            rows.setdefault((", ".join(names), shapes), []).append(block.index)
        for name in block.dense:
            rows.setdefault((f"{name} (stays dense)", "{} x {}".format(*block.shapes[name])), []).append(block.index)
    for (group, shapes), blocks in rows.items():
        yield ranges(blocks), group, shapes


def percent(share: float) -> str:
    """0.1234 as 12.3 %, with three digits."""
    value = 100.0 * share
    return f"{value:.0f} %" if value >= 99.95 else f"{value:.1f} %" if value >= 9.995 else f"{value:.2f} %"


def clock(seconds: float) -> str:
    """Seconds as 12.3 s, 4:05 or 2:10:00."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: int) -> str:
    """Bytes in decimal units."""
    if count >= 999.5e6:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 999.5e3 else f"{count / 1e3:.0f} kB"


def _change(error: Mapping[str, float]) -> str:
    if error["before"] == error["after"]:
        return percent(error["after"])
    return f"{percent(error['before'])} > {percent(error['after'])}"
