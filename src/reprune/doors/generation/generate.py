"""`reprune generate`: texts that a model writes itself, as the paper has them, into a file that survives anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from reprune.doors.generation.endpoint import EndpointAuthor
from reprune.doors.generation.local import LocalAuthor
from reprune.doors.prepare import settle_device, settle_precision
from reprune.engine.record import versions
from reprune.errors import InputError
from reprune.model.bare import max_positions, read_config
from reprune.model.checkpoint import Checkpoint
from reprune.model.float32 import fast_float32
from reprune.model.locate import locate_model
from reprune.model.lock import locked
from reprune.planning.generation.corpus import Corpus
from reprune.planning.generation.filters import require_filters
from reprune.planning.generation.firsts import first_tokens
from reprune.planning.generation.language import require_language
from reprune.planning.generation.rounds import Author, Procedure
from reprune.planning.generation.settings import Generation
from reprune.planning.paths import local_name
from reprune.planning.tokenizer import load_tokenizer
from reprune.planning.tokens import beginning

_HOPELESS = 20  # rounds in a row that keep nothing


class GenerationWatcher:
    """Is told how texts come along; this one ignores it all, subclasses show it."""

    def started(self, kept: int, wanted: int) -> None:
        """Texts are about to be written; so many are there already."""

    def writing(self, done: int, of: int) -> None:
        """So many tokens of each text of a round are written, of at most so many."""

    def round_done(self, kept: int, wanted: int, counts: Mapping[str, int]) -> None:
        """A round is on disk; `counts` is over all rounds."""

    def note(self, text: str) -> None:
        """Something that a reader should know."""


@fast_float32()
def generate(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    samples: int,
    settings: Generation,
    endpoint: str | None = None,
    endpoint_model: str | None = None,
    concurrency: int = 16,
    device: str = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
    watcher: GenerationWatcher | None = None,
) -> dict[str, Any]:
    """Have a model write texts, the paper's way: a first token at random, four by greedy choice, the rest by sampling.

    Started again with the same arguments it goes on where it was, and ends with the same file. Asked for more texts
    than a file has it goes on, too, and ends with the file that it would have written at once.

    Args:
        model: a local folder, a Hub id, or a .gguf file.
        out: the file, .jsonl; two more are written beside it, see `reprune.planning.generation.corpus`.
        samples: how many texts to keep.
        settings: how they are written and filtered.
        endpoint: the URL of a server of OpenAI's completions interface that writes in place of this process; of
            `model`, only the tokenizer and the configuration are then needed.
        endpoint_model: what the server calls the model, if it has several.
        concurrency: requests to the server at a time.
        device, precision: as in a recipe.
        watcher: is told what happens.

    Returns:
        The manifest.

    Raises:
        InputError: something given cannot be used, or hardly any text passes the filters; nothing is written over.
    """
    watcher = watcher or GenerationWatcher()
    if samples < 1:
        raise InputError(f"--samples {samples}: expected at least 1.")
    corpus = Corpus(Path(out))
    require_filters()
    require_language(settings.language)
    folder = locate_model(os.fspath(model), notify=watcher.note, weights=endpoint is None)
    tokenizer = load_tokenizer(folder, trust_remote_code)
    _check_length(folder, settings, len(beginning(tokenizer)), trust_remote_code)
    name = local_name(os.fspath(model))
    made_by: dict[str, Any] = {
        "model": {"name": name},
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
    }

    where = settle_device(device)
    products = settle_precision(precision, where)
    with ExitStack() as stack:
        server: Author | None = None
        if endpoint is None:
            made_by["model"]["fingerprint"] = Checkpoint(folder).fingerprint()
            made_by |= {"device": where, "precision": products}
        else:
            server = stack.enter_context(
                closing(EndpointAuthor(endpoint, endpoint_model, tokenizer, settings, concurrency, watcher.writing))
            )
            made_by["endpoint_model"] = server.model
        if (finished := corpus.finished()) is not None:
            corpus.check(finished["made_by"], made_by, finished["texts"], samples)
            if finished["texts"] == samples:
                return finished
        corpus.path.parent.mkdir(parents=True, exist_ok=True)
        corpus.path.touch()
        stack.enter_context(locked(corpus.path, corpus.path, "file"))
        corpus.open(made_by, samples)
        author = server or LocalAuthor(folder, tokenizer, settings, where, products, trust_remote_code, watcher.writing)
        return _fill(corpus, author, tokenizer, samples, settings, made_by, watcher)


def _fill(
    corpus: Corpus,
    author: Author,
    tokenizer: Any,
    samples: int,
    settings: Generation,
    made_by: Mapping[str, Any],
    watcher: GenerationWatcher,
) -> dict[str, Any]:
    """Do the rounds that are left."""
    firsts = first_tokens(tokenizer, author.rows)
    filters = settings.build_filters()
    corpus.teach(filters)
    procedure = Procedure(author, firsts, settings, filters)
    watcher.started(corpus.count, samples)
    idle = 0
    while corpus.count < samples:
        found = procedure.round(corpus.next_round, samples - corpus.count)
        corpus.add(found)
        watcher.round_done(corpus.count, samples, corpus.counts)
        idle = 0 if found.kept else idle + 1
        if idle == _HOPELESS:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(corpus.counts.items()))
            raise InputError(
                f"{idle} rounds in a row gave no text that passes ({counts}); leave filters out, or give the language "
                "that the model writes (--language)."
            )
    manifest = {
        "made_by": dict(made_by),
        "texts": corpus.count,
        "rounds": corpus.next_round,
        "counts": dict(sorted(corpus.counts.items())),
        "first_tokens": {"possible": len(firsts.ids), "left_out": firsts.left_out},
    }
    corpus.close(manifest)
    return manifest


def _check_length(folder: Path, settings: Generation, prefix: int, trust_remote_code: bool) -> None:
    limit = max_positions(read_config(folder, trust_remote_code).get_text_config(decoder=True))
    if limit is not None and settings.length + prefix > limit:
        raise InputError(
            f"--length {settings.length}: {folder.name} takes at most {limit} tokens, {prefix} of them at the start; "
            f"give --length {limit - prefix} or less."
        )
