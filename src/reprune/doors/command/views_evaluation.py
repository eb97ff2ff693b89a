"""Shows measures of a model: a perplexity, errors by block, accuracies. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reprune.doors.evaluation.against import AgainstDense
from reprune.doors.evaluation.perplexity import Perplexity
from reprune.doors.evaluation.protocols import describe
from reprune.doors.formats import console, percent, table

if TYPE_CHECKING:  # without lm-eval there is none to show
    from reprune.doors.zeroshot.accuracy import ZeroShot

_HEX = 12  # digits of a SHA-256 that are shown


def show_perplexity(result: Perplexity, quiet: bool) -> None:
    """A perplexity with all that decides it, or the bare number."""
    output = console()
    if quiet:
        output.print(f"{result.perplexity:.4f}")
        return
    output.print(f"perplexity {result.perplexity:.4f}")
    output.print(f"model      {result.model}, fingerprint {result.fingerprint[:_HEX]}")
    output.print(f"weights    saved in {result.weights_dtype}, products in {result.precision}")
    _show_text(result)
    output.print(f"predicted  {result.tokens:,} tokens")


def show_against(result: AgainstDense, quiet: bool) -> None:
    """The errors of all blocks, or the last one's relative error alone."""
    output = console()
    last = result.blocks[-1]
    if quiet:
        output.print(f"{last.relative:.6f}")
        return
    output.print(f"against    {result.dense}, fingerprint {result.dense_fingerprint[:_HEX]}")
    output.print(f"model      {result.model}, fingerprint {result.fingerprint[:_HEX]}; products in {result.precision}")
    _show_text(result)
    if result.embedding:
        output.print(f"embedding  differs: relative error {percent(result.embedding)} before any block")
    rows = table(numbers=("block", "sparsity", "normalized error", "relative error"))
    for block in result.blocks:
        row = (f"{block.index}", percent(block.sparsity), f"{block.normalized:.4g}", percent(block.relative))
        rows.add_row(*row, style="bold" if block is last else None)
    output.print(rows)
    output.print(f"last block {last.index}: the error has {percent(last.relative)} of the power of the dense output")


def show_zero_shot(result: ZeroShot, quiet: bool) -> None:
    """Accuracy by task, or the mean alone."""
    output = console()
    if quiet:
        output.print(f"{result.mean:.4f}")
        return
    output.print(f"zero-shot  {result.model}, fingerprint {result.fingerprint[:_HEX]}; products in {result.precision}")
    first = "all rows" if result.limit is None else f"the first {result.limit} rows of each task"
    output.print(f"data       {result.data}, {first}; {result.harness}")
    rows = table(("task",), ("examples", "accuracy ± standard error", "metric"))
    for task in result.tasks:
        spread = "" if task.standard_error is None else f" ± {100 * task.standard_error:.2f}"
        rows.add_row(task.task, f"{task.examples:,}", f"{100 * task.accuracy:.2f}{spread} %", task.metric)
    rows.add_row("mean", "", f"{100 * result.mean:.2f} %", "", style="bold")
    output.print(rows)


def _show_text(result: Perplexity | AgainstDense) -> None:
    output = console()
    output.print(f"text       {result.text}, sha256 {result.text_sha256[:_HEX]}")
    output.print(f"protocol   {describe(result.record())}")
