"""The `reprune evaluate` command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from reprune.doors.command.options import Model, Trust, ZeroShotData, ZeroShotLimit, exit_codes
from reprune.doors.printable import complain, printable
from reprune.errors import InputError, RepruneError, out_of_memory


def evaluate(
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="The text to measure on; of a data set, its test split."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Windows: paper (2048 tokens), wanda (full length, up to 4096), short (12 of 512); "
            "gptq and published: as paper and wanda, with one BOS before the whole text. [paper]",
        ),
    ] = None,
    seqlen: Annotated[
        int | None, typer.Option(metavar="T", help="Tokens per window. [2048, or the model's limit]")
    ] = None,
    windows: Annotated[int | None, typer.Option(metavar="N", help="Only the first N windows. [all; of c4 256]")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="DENSE", help="Show each block's error against this dense model.")
    ] = None,
    no_perplexity: Annotated[
        bool,
        typer.Option("--no-perplexity", help="Leave perplexity out; --against alone never loads MODEL as a whole."),
    ] = False,
    zero_shot: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK ...", help="Tasks of lm-eval: boolq, rte, hellaswag, ..., or paper for all seven."),
    ] = None,
    zero_shot_data: ZeroShotData = None,
    zero_shot_limit: ZeroShotLimit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="P", help="auto, float32, bfloat16 or float16.")] = "auto",
    trust_remote_code: Trust = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print bare numbers only, one per line.")] = False,
) -> None:
    """Measure MODEL: its perplexity on a text, each block's error, its zero-shot accuracy.

    Perplexity is over windows of the text that do not overlap.
    """
    with exit_codes():
        cut: dict[str, Any] = {"protocol": protocol, "seqlen": seqlen, "max_windows": windows}
        source = _one(text)
        _check(
            source,
            {"--against": against, "--protocol": protocol, "--seqlen": seqlen, "--windows": windows},
            zero_shot,
            {"--zero-shot-data": zero_shot_data, "--zero-shot-limit": zero_shot_limit},
        )
        if no_perplexity and against is None:
            raise InputError("--no-perplexity: leaves nothing to measure on a text; give --against DENSE too.")
        from reprune.doors.command import views_evaluation as views
        from reprune.doors.devices import settle_device
        from reprune.doors.formats import wrapped
        from reprune.doors.progress import counting

        records: dict[str, Any] = {}
        told: set[str] = set()
        silent = quiet or as_json

        def notify(said: str) -> None:
            if not quiet and said not in told:  # two measures may say the same
                told.add(said)
                if as_json:
                    complain(wrapped(said))
                else:
                    print(wrapped(printable(said)))

        common: dict[str, Any] = {
            "device": device,
            "precision": precision,
            "trust_remote_code": trust_remote_code,
            "notify": notify,
        }

        def take(name: str, result: Any, show: Any) -> None:
            if not as_json:
                if records and not quiet:
                    print()
                show(result, quiet)
            records[name] = result.record()

        # Refuse what cannot be used before the first measure, which may take hours, and before models are downloaded.
        settle_device(device)
        if zero_shot:
            from reprune.doors.zeroshot.accuracy import check_tasks

            check_tasks(zero_shot, data=zero_shot_data, limit=zero_shot_limit)
        if source is not None and against is not None:
            from reprune.doors.evaluation.against import check_against
            from reprune.doors.evaluation.protocols import Cut

            check_against([model, against], source, Cut.of(**cut), trust_remote_code, notify)
        try:
            if source is not None and not no_perplexity:
                from reprune.doors.evaluation.evaluate import evaluate as evaluate_model

                with _room_for_all(against), counting("windows", silent) as progress:
                    measured = evaluate_model(model, source, **cut, **common, progress=progress)
                take("perplexity", measured, views.show_perplexity)
            if source is not None and against is not None:
                from reprune.doors.evaluation.against import errors_against

                with counting("blocks", silent) as progress:
                    errors = errors_against(model, against, source, **cut, **common, progress=progress)
                take("against", errors, views.show_against)
            if zero_shot:
                from reprune.doors.zeroshot.accuracy import zero_shot as accuracies

                with counting("answers", silent) as progress:
                    found = accuracies(
                        model, zero_shot, data=zero_shot_data, limit=zero_shot_limit, **common, progress=progress
                    )
                take("zero_shot", found, views.show_zero_shot)
        finally:
            if as_json and records:  # also if a later measure failed
                print(json.dumps(records, indent=2))


@contextmanager
def _room_for_all(against: str | None) -> Iterator[None]:
    """If the whole model does not fit in memory, say how to do without it, if that is possible."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if against is None or (said := out_of_memory(error)) is None:
            raise
        raise RepruneError(
            f"{said}; perplexity needs the whole model in memory, but --against only a block; "
            "leave perplexity out with --no-perplexity."
        ) from error


def _one(texts: list[str] | None) -> str | None:
    """The text, if one is given; raises `InputError` if there are several."""
    if texts and len(texts) > 1:
        raise InputError(f"--text {' --text '.join(texts)}: one text is measured at a time; give one.")
    return texts[0] if texts else None


def _check(
    text: str | None, of_text: Mapping[str, Any], zero_shot: list[str] | None, of_zero_shot: Mapping[str, Any]
) -> None:
    """Raise `InputError` if nothing is asked for, or a flag lacks the one that it belongs to."""
    lacking = {} if text is not None else dict.fromkeys(of_text, "--text SOURCE")
    lacking |= {} if zero_shot else dict.fromkeys(of_zero_shot, "--zero-shot TASKS")
    for flag, value in {**of_text, **of_zero_shot}.items():
        if value is not None and flag in lacking:
            raise InputError(f"{flag} {value}: says how to measure, but not what; give {lacking[flag]} too.")
    if text is None and not zero_shot:
        raise InputError("nothing to measure: expected --text SOURCE for perplexity, or --zero-shot TASKS.")
