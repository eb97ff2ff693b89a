"""The `reprune evaluate` command."""

from __future__ import annotations

from typing import Annotated

import typer

from reprune.doors.options import Model, Quiet, Trust, exit_codes


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
    with exit_codes():
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
