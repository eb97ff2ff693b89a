"""`reprune generate`: has a model write texts, as in the paper, to a file from which an interrupted run can go on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch

from reprune.doors.devices import settle_together, slowness
from reprune.doors.found import find_model
from reprune.doors.generation.endpoint import EndpointAuthor
from reprune.doors.generation.local import LocalAuthor
from reprune.doors.given import listening
from reprune.doors.processes import check_devices, check_model, check_versions
from reprune.engine.record import versions
from reprune.errors import InputError, going_on
from reprune.files.durable import refusing
from reprune.files.local import local_path
from reprune.files.lock import locked
from reprune.math.ranks import ALONE, Ranks
from reprune.model.bare import longest
from reprune.model.checkpoint import Checkpoint, digests_beside
from reprune.model.full_speed import full_speed
from reprune.model.snapshots import called
from reprune.model.undisturbed import undisturbed
from reprune.planning.generation.corpus import Corpus
from reprune.planning.generation.filters import require_filters
from reprune.planning.generation.firsts import first_tokens
from reprune.planning.generation.language import require_language
from reprune.planning.generation.rounds import Author, Draft, draft, judge
from reprune.planning.generation.settings import Generation
from reprune.planning.paths import on_record
from reprune.planning.tokenizer import load_tokenizer
from reprune.planning.tokens import beginning

_HOPELESS = 20  # rounds in a row that keep nothing
_AGAIN = "Finished rounds are kept: give the same command again, with any number of processes."


class GenerationWatcher:
    """Receives the events of a generation; this class ignores them, subclasses show them."""

    def started(self, kept: int, wanted: int) -> None:
        """Texts are about to be written; `kept` of `wanted` are there already."""

    def round_done(self, kept: int, wanted: int, counts: Mapping[str, int]) -> None:
        """A round is on disk; `counts` is over all rounds."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


@undisturbed()
@full_speed()
def generate(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    samples: int,
    settings: Generation,
    endpoint: str | None = None,
    endpoint_model: str | None = None,
    concurrency: int = 16,
    device: str | torch.device = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
    watcher: GenerationWatcher | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Have a model write texts as in the paper: a random first token, four by greedy choice, the rest by sampling.

    If it is interrupted, a call with the same arguments goes on and ends with the same file. If more texts are asked
    for than a finished file has, it goes on too, and the file ends as if all had been asked for at once.

    Args:
        model: a local folder, a Hub id, or a .gguf file.
        out: the .jsonl file; two more are written beside it, see `reprune.planning.generation.corpus`.
        samples: how many texts to keep.
        settings: how they are written and filtered; the default length is cut to the model's limit.
        endpoint: the URL of a server of OpenAI's completions interface that writes in place of this process; of
            `model`, only the tokenizer and the configuration are then needed.
        endpoint_model: the server's name of the model, if it has several.
        concurrency: the number of requests to the server at a time.
        device, precision: as in a recipe.
        watcher: receives the generation's events.
        ranks: the N processes that write texts together, each with a whole model and every N-th round; only the first
            judges and saves texts.

    Returns:
        The manifest.

    Raises:
        InputError: something given cannot be used, or hardly any text passes the filters; nothing is written over.
    """
    watcher = listening(watcher, GenerationWatcher)
    if samples < 1:
        raise InputError(f"--samples {samples}: expected at least 1.")
    if endpoint_model is not None and endpoint is None:
        raise InputError(f"--endpoint-model {endpoint_model}: names a model of a server; give its --endpoint URL too.")
    with refusing(local_path(out, "out")):
        corpus = Corpus(local_path(out, "out"))
    require_filters(settings.filters)
    require_language(settings.language)
    check_versions(ranks)
    check_devices(str(device), ranks)
    where, products = settle_together(device, precision, ranks)
    folder = find_model(model, notify=watcher.note, weights=endpoint is None)  # may download it, so it comes late
    check_model(ranks, os.fspath(model), folder, weights=endpoint is None)
    tokenizer = load_tokenizer(folder, trust_remote_code)
    settings = _fitting(folder, settings, len(beginning(tokenizer)), trust_remote_code)
    made_by: dict[str, Any] = {
        "model": {**on_record(os.fspath(model), folder), "files": digests_beside(folder)},
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
    }

    with ExitStack() as stack:
        server: Author | None = None
        if endpoint is None:
            made_by["model"]["fingerprint"] = Checkpoint(folder).fingerprint()
            made_by |= {"device": where, "precision": products}
            for slow in slowness(precision, where):
                watcher.note(slow)
        else:
            server = stack.enter_context(
                closing(EndpointAuthor(endpoint, endpoint_model, tokenizer, settings, concurrency))
            )
            made_by["endpoint_model"] = server.model

        def begin() -> dict[str, Any] | None:
            with refusing(corpus.path):
                if (finished := corpus.finished()) is not None:
                    corpus.check(finished["made_by"], made_by, finished["texts"], samples)
                    if finished["texts"] == samples:
                        return finished
                else:
                    corpus.check_free()  # before the file to lock is created
                corpus.path.parent.mkdir(parents=True, exist_ok=True)
                corpus.path.touch()
                with locked(corpus.path, corpus.path, "file"):  # the lock of all names of the file
                    corpus.own()
                stack.enter_context(locked(corpus.path, corpus.path, "file"))
                corpus.open(made_by, samples)
            return None

        if (finished := ranks.first_does(begin)) is not None:
            return finished
        author = server or LocalAuthor(folder, tokenizer, settings, where, products, trust_remote_code)
        with going_on(_AGAIN):
            return _fill(corpus, author, tokenizer, samples, settings, made_by, watcher, ranks)


def _fill(
    corpus: Corpus,
    author: Author,
    tokenizer: Any,
    samples: int,
    settings: Generation,
    made_by: Mapping[str, Any],
    watcher: GenerationWatcher,
    ranks: Ranks,
) -> dict[str, Any]:
    """Do the rounds that are left, one on each rank at a time."""
    firsts = first_tokens(tokenizer, author.rows)
    judging = _Judging(corpus, samples, settings, watcher) if ranks.first else None

    def next_round() -> int | None:
        return None if judging is None else judging.next_round()

    while (number := ranks.first_does(next_round)) is not None:
        for told in ranks.each_tells(asdict(draft(author, firsts, settings, number + ranks.number))):
            if judging is not None:
                judging.add(Draft(**told))

    def close() -> dict[str, Any]:
        manifest = {
            "made_by": dict(made_by),
            "texts": corpus.count,
            "rounds": corpus.next_round,
            "counts": dict(sorted(corpus.counts.items())),
            "first_tokens": {"possible": len(firsts.ids), "left_out": firsts.left_out},
        }
        corpus.close(manifest)
        return manifest

    return ranks.first_does(close)


@final
class _Judging:
    """Judges rounds in order and saves them; rounds after the last text that is wanted are ignored."""

    def __init__(self, corpus: Corpus, samples: int, settings: Generation, watcher: GenerationWatcher) -> None:
        self._corpus = corpus
        self._samples = samples
        self._filters = settings.build_filters()
        self._watcher = watcher
        self._idle = 0  # rounds in a row that have kept nothing
        corpus.teach(self._filters)
        watcher.started(corpus.count, samples)

    def next_round(self) -> int | None:
        """The next round's number; None if there are enough texts. Raises `InputError` if too many rounds kept none."""
        if self._corpus.count >= self._samples:
            return None
        if self._idle >= _HOPELESS:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(self._corpus.counts.items()))
            raise InputError(
                f"{self._idle} rounds in a row gave no text that passes ({counts}); leave filters out, or give the "
                "language that the model writes (--language)."
            )
        return self._corpus.next_round

    def add(self, draft: Draft) -> None:
        """Judge the next round."""
        wanted = self._samples - self._corpus.count
        if wanted <= 0:
            return
        found = judge(draft, self._filters, wanted)
        self._corpus.add(found)
        self._watcher.round_done(self._corpus.count, self._samples, self._corpus.counts)
        self._idle = 0 if found.kept else self._idle + 1


def _fitting(folder: Path, settings: Generation, prefix: int, trust_remote_code: bool) -> Generation:
    """The settings, with the default length cut to the model's limit; raises `InputError` for a given one beyond it."""
    limit = longest(folder, trust_remote_code)
    if limit is None or settings.length + prefix <= limit:
        return settings
    if "length" not in settings.model_fields_set and settings.least + prefix <= limit:
        return settings.model_copy(update={"length": limit - prefix})
    raise InputError(
        f"--length {settings.length}: {called(folder)} takes at most {limit} tokens, {prefix} of which begin each "
        f"text; give --length {limit - prefix} or less."
    )
