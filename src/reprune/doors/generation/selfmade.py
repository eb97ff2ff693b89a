"""The calibration texts that a recipe's own model writes: written once, then cached by all that decides them.

In the cache they are one growing file: its first N texts are the same, however many were asked for before.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

from reprune.doors.devices import slowness
from reprune.doors.generation.generate import GenerationWatcher, generate
from reprune.engine.peak_memory import forget_peak_memory, peak_memory_bytes
from reprune.engine.record import versions
from reprune.engine.watcher import Watcher
from reprune.files.cache import cache_root, locked_cache, usable_cache
from reprune.files.durable import write_text
from reprune.math.ranks import Ranks
from reprune.model.checkpoint import digests_beside
from reprune.model.decoder import Decoder
from reprune.planning.generation.corpus import Corpus
from reprune.planning.generation.settings import Generation
from reprune.planning.recipe import Recipe
from reprune.planning.shares import heldout_part
from reprune.planning.tokenizer import load_tokenizer
from reprune.planning.tokens import beginning

_ALL = "all.jsonl"  # all that were ever asked for
OWN_TEXTS = "self-generated.jsonl"  # as many as a run asks for, in a folder named by their number


def texts_of(recipe: Recipe) -> int:
    """How many texts a recipe has its model write, including those to be held out."""
    wanted = recipe.self_generate.samples
    return wanted + (0 if recipe.heldout else heldout_part(wanted))


@final
@dataclass(frozen=True)
class _Place:
    """Where the texts of a settled recipe are kept, and how they are written."""

    settings: Generation
    folder: Path
    first: Path  # the file of only as many as are asked for

    @staticmethod
    def of(recipe: Recipe, decoder: Decoder) -> _Place:
        assert recipe.seqlen is not None
        start = len(beginning(load_tokenizer(decoder.folder, recipe.trust_remote_code)))
        limit = decoder.skeleton.max_positions
        most = None if limit is None else limit - start
        settings = recipe.self_generate.build(recipe.seqlen - start, most, recipe.seed)
        model = decoder.checkpoint.fingerprint(), *digests_beside(decoder.folder).values()
        decisive = *model, recipe.device, recipe.precision, *versions().values()
        folder = cache_root() / "self-generated" / settings.key(*decisive)  # whatever the model is called
        return _Place(settings, folder, folder / str(texts_of(recipe)) / OWN_TEXTS)

    @property
    def corpus(self) -> Corpus:
        return Corpus(self.folder / _ALL)

    def lacks(self, texts: int) -> bool:
        """Whether the model still has to write some of this number of texts."""
        with usable_cache():
            return not self.first.exists() and self.corpus.texts() < texts


def unwritten(recipe: Recipe, decoder: Decoder) -> int:
    """How many texts a settled recipe has, if its model still has to write some of them; otherwise 0."""
    texts = texts_of(recipe)
    return texts if texts and _Place.of(recipe, decoder).lacks(texts) else 0


@final
@dataclass(frozen=True)
class OwnTexts:
    """The texts that a model has written."""

    path: Path
    record: dict[str, Any] | None  # number, seconds, and each rank's peak of memory; None: they were cached


def self_generated(recipe: Recipe, decoder: Decoder, watcher: Watcher, ranks: Ranks) -> OwnTexts | None:
    """A settled recipe's self-generated texts, written now if the cache lacks them; None if none are asked for.

    The ranks write them together, to the first one's cache.

    Raises:
        InputError: the model cannot write them.
    """
    if not (texts := texts_of(recipe)):
        return None
    place = _Place.of(recipe, decoder)
    folder, first, corpus = place.folder, place.first, place.corpus
    record: dict[str, Any] | None = None

    with ExitStack() as stack, _room_in(folder):

        def missing() -> bool:
            watcher.phase(None, f"generating {texts} texts, or finding them in the cache")
            with usable_cache():
                if first.exists():  # whole, so no lock is needed, for which a cache has to be writable
                    return False
            stack.enter_context(locked_cache(folder.name))  # another run may be writing
            with usable_cache():
                folder.mkdir(parents=True, exist_ok=True)
                if lacks := place.lacks(texts):
                    corpus.path.touch()  # here it is the cache that cannot be used, in `generate` it would be --out
            return lacks

        if ranks.first_does(missing):
            forget_peak_memory(recipe.device)
            began = time.monotonic()
            generate(
                decoder.folder,
                corpus.path,
                samples=texts,
                settings=place.settings,
                device=recipe.device,
                precision=recipe.precision,
                trust_remote_code=recipe.trust_remote_code,
                watcher=_Passing(watcher, slowness(recipe.precision, recipe.device)),
                ranks=ranks,
            )
            seconds, peaks = round(time.monotonic() - began, 3), ranks.each_tells(peak_memory_bytes(recipe.device))
            record = {"texts": texts, "seconds": seconds, "peak_memory_bytes": peaks}
        if ranks.first and not first.exists():
            first.parent.mkdir(parents=True, exist_ok=True)
            with corpus.path.open(encoding="utf-8") as lines:
                write_text(first, "".join(islice(lines, texts)))
    return OwnTexts(first, record)


@contextmanager
def _room_in(folder: Path) -> Iterator[None]:
    """If the disk has no room for the texts in this folder, say in the error that the cache can be on another disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or folder not in Path(error.filename or "").parents:
            raise
        way = "make room and give the same command again, or set REPRUNE_CACHE to another folder"
        raise OSError(error.errno, f"{error.strerror}; {way}", error.filename) from None


@final
class _Passing(GenerationWatcher):
    """Passes progress and notes to a run's watcher, except for notes that it has already been given."""

    def __init__(self, watcher: Watcher, had: Collection[str]) -> None:
        self._watcher = watcher
        self._had = had

    def round_done(self, kept: int, wanted: int, counts: Mapping[str, int]) -> None:
        self._watcher.phase(None, f"generating: {kept} of {wanted} texts, {counts['begun']} begun")

    def note(self, text: str) -> None:
        if text not in self._had:
            self._watcher.note(text)
