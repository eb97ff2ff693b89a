"""The calibration texts that a recipe's own model writes: made once, and kept in the cache by all that decides them.

There they are one growing file: the first so many of its texts are the same, however many were asked for before.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import final

from reprune.doors.generation.generate import GenerationWatcher, generate
from reprune.engine.record import versions
from reprune.engine.watcher import Watcher
from reprune.math.ranks import ALONE, Ranks
from reprune.model.decoder import Decoder
from reprune.model.durable import write_text
from reprune.model.gguf import cache_root
from reprune.model.lock import locked
from reprune.planning.generation.corpus import Corpus
from reprune.planning.recipe import Recipe
from reprune.planning.shares import heldout_part
from reprune.planning.tokenizer import load_tokenizer
from reprune.planning.tokens import beginning

_ALL = "all.jsonl"  # as many as were ever asked for
_FIRST = "self-generated.jsonl"  # in a folder that is named for how many it has


def self_generated(recipe: Recipe, decoder: Decoder, watcher: Watcher, ranks: Ranks = ALONE) -> Path | None:
    """The file of a settled recipe's self-generated texts, written now unless it was before; None where none are asked.

    Ranks write it together. It is in the first one's cache.

    Raises:
        InputError: the model cannot write them.
    """
    wanted = recipe.self_generate.samples
    if not wanted:
        return None
    assert recipe.seqlen is not None
    tokenizer = load_tokenizer(decoder.folder, recipe.trust_remote_code)
    start = len(beginning(tokenizer))
    limit = decoder.skeleton.max_positions
    settings = recipe.self_generate.build(recipe.seqlen - start, None if limit is None else limit - start, recipe.seed)
    texts = wanted + (0 if recipe.heldout else heldout_part(wanted))
    decisive = decoder.checkpoint.fingerprint(), recipe.device, recipe.precision, *versions().values()
    folder = cache_root() / "self-generated" / f"{decoder.folder.name}-{settings.key(*decisive)}"
    first = folder / str(texts) / _FIRST
    corpus = Corpus(folder / _ALL)

    with ExitStack() as stack:

        def missing() -> bool:
            watcher.phase(None, f"generating {texts} texts, or finding them in the cache")
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder, folder, "cache", wait=True))  # another run may be writing them just now
            return not first.exists() and corpus.texts() < texts

        if ranks.first_does(missing):
            generate(
                decoder.folder,
                corpus.path,
                samples=texts,
                settings=settings,
                device=recipe.device,
                precision=recipe.precision,
                trust_remote_code=recipe.trust_remote_code,
                watcher=_Passing(watcher),
                ranks=ranks,
            )
        if ranks.first and not first.exists():
            first.parent.mkdir(parents=True, exist_ok=True)
            with corpus.path.open(encoding="utf-8") as lines:
                write_text(first, "".join(islice(lines, texts)))
    return first


@final
class _Passing(GenerationWatcher):
    """Passes on to who watches a run."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def round_done(self, kept: int, wanted: int, counts: Mapping[str, int]) -> None:
        self._watcher.phase(None, f"generating: {kept} of {wanted} texts, {counts['begun']} begun")

    def note(self, text: str) -> None:
        self._watcher.note(text)
