"""The `reprune generate` command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from reprune.doors.command.options import Model, Quiet, RankTimeout, Seed, Trust, exit_codes, flags_of, processes

_NONE = "none"


def generate(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, .jsonl.")],
    samples: Annotated[int, typer.Option(metavar="N", help="Texts to keep.")],
    length: Annotated[
        int | None, typer.Option(metavar="L", help="Most tokens of a text. [2048, or the model's limit]")
    ] = None,
    least: Annotated[int | None, typer.Option(metavar="L", help="Fewest tokens of a text. [6]")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="Sampling temperature. [1]")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Draw from the likeliest tokens that have probability P together. [all]"),
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Draw from the K likeliest tokens. [all]")] = None,
    language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Language of the texts, in ISO 639, or any. [en]")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME ...", help="Some of language, repetition, code, duplicates, likelihood; or none. [all]"
        ),
    ] = None,
    seed: Seed = None,
    batch_size: Annotated[int | None, typer.Option(metavar="B", help="Texts written at a time. [64]")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print ten texts kept and ten rejected.")] = False,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Have this server write, through OpenAI's completions API.")
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the server calls the model. [the only one it lists]")
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", help="Concurrent requests to the server.")] = 16,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="P", help="auto, float32, bfloat16 or float16.")] = "auto",
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    rank_timeout: RankTimeout = None,
) -> None:
    """Have MODEL write texts to calibrate on, and keep those that pass. Run again, it goes on where it stopped.

    The first token is random, the next four are greedy; if these read as the language, the rest is sampled.
    """
    flags = flags_of(locals(), "model", "out", "show", "quiet", "rank_timeout")
    with exit_codes(way_on=partial(way_on, out)), processes(rank_timeout) as ranks:
        from reprune.doors.command.views_generation import Lines, show_manifest, show_texts
        from reprune.doors.generation.generate import GenerationWatcher
        from reprune.doors.generation.generate import generate as run
        from reprune.errors import InputError
        from reprune.planning.generation.settings import Generation, generation

        settings = {name: flags.pop(name) for name in Generation.model_fields if name in flags}
        if filters is not None:
            if _NONE in filters and len(filters) > 1:
                raise InputError("--filters none: stands alone; leave it or the others out.")
            settings["filters"] = tuple(name for name in filters if name != _NONE)
        watcher = Lines() if ranks.first and not quiet else GenerationWatcher()
        manifest = run(model, out, settings=generation(settings), watcher=watcher, ranks=ranks, **flags)
        if ranks.first and not quiet:
            show_manifest(manifest, out)
        if ranks.first and show:
            show_texts(out)


def way_on(out: Path) -> str:
    """How to go on with a file of texts, if it has been begun."""
    begun = out.with_name(f".{out.stem}.rounds").exists()
    return "; finished texts are kept, the same command goes on from there" if begun else ""
