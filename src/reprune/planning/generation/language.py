"""Identifies the language of a text by py3langid. Knows texts, no tokens."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any, final

from reprune.errors import InputError
from reprune.planning.room import no_room

ANY = "any"
"""Stands for any language."""
_PIECE = 200  # characters judged at a time


def require_language(language: str) -> None:
    """Raise `InputError` if languages cannot be identified, or this one is not known."""
    if not can_tell():
        raise InputError("generating texts needs py3langid; install it with: pip install 'reprune[generate]'")
    if wrong := wrong_language(language):
        raise InputError(f"--language {language}: {wrong}.")


def can_tell() -> bool:
    """Whether the library that identifies languages is installed."""
    return importlib.util.find_spec("py3langid") is not None


def wrong_language(language: str) -> str | None:
    """The message for a language code that is not known; None if it is."""
    known = sorted(str(label) for label in _identifier().labels)
    return None if language in (ANY, *known) else f"expected {ANY}, or a code of ISO 639 among {', '.join(known)}"


@final
@dataclass(frozen=True)
class Language:
    """The language that a text was identified as."""

    code: str  # of ISO 639
    score: float  # its probability, 0 to 1

    def fits(self, wanted: str) -> bool:
        """Whether it is the wanted language, or any language will do."""
        return wanted in (ANY, self.code)


def language_of(text: str) -> Language:
    """The most likely language of a text, and its probability among all known languages."""
    code, score = _identifier().classify(text)
    return Language(str(code), float(score))


def share_in(text: str, language: str) -> float:
    """The share of a text's letters that are in a language, judged in pieces of about 200 characters."""
    if language == ANY:
        return 1.0
    pieces = _pieces(text)
    letters = [sum(map(str.isalpha, piece)) for piece in pieces]
    inside = sum(count for piece, count in zip(pieces, letters, strict=True) if language_of(piece).fits(language))
    return inside / sum(letters) if sum(letters) else 0.0


def _pieces(text: str) -> list[str]:
    """A text cut at white space; a short last piece is joined to the one before it."""
    words, pieces, size = text.split(), [list[str]()], 0
    for word in words:
        if size >= _PIECE:
            pieces.append([])
            size = 0
        pieces[-1].append(word)
        size += len(word) + 1
    if len(pieces) > 1 and size < _PIECE // 2:
        last = pieces.pop()
        pieces[-1].extend(last)
    return [" ".join(piece) for piece in pieces]


@cache
def _identifier() -> Any:
    """The library's own model, which gives normalized probabilities."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    try:
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError as error:  # the library unpacks the file to disk
        raise no_room(error) or error from None
