"""Which language a text is in, by py3langid. Knows texts, no tokens."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any, final

from reprune.errors import InputError
from reprune.planning.room import no_room

ANY = "any"
"""Stands for whatever language a text is in."""
_PIECE = 200  # characters judged at a time


def require_language(language: str) -> None:
    """Raise `InputError` where languages cannot be told, or not this one."""
    if not can_tell():
        raise InputError("generating texts needs py3langid; install it with: pip install 'reprune[generate]'")
    if wrong := wrong_language(language):
        raise InputError(f"--language {language}: {wrong}.")


def can_tell() -> bool:
    """Whether there is what languages are told by."""
    return importlib.util.find_spec("py3langid") is not None


def wrong_language(language: str) -> str | None:
    """What is wrong with the code of a language that is to be told; None if nothing is."""
    known = sorted(str(label) for label in _identifier().labels)
    return None if language in (ANY, *known) else f"expected {ANY}, or a code of ISO 639 among {', '.join(known)}"


@final
@dataclass(frozen=True)
class Language:
    """What a text was taken for."""

    code: str  # of ISO 639
    score: float  # its probability, 0 to 1

    def fits(self, wanted: str) -> bool:
        """Whether it is the one that is wanted, or any is."""
        return wanted in (ANY, self.code)


def language_of(text: str) -> Language:
    """The likeliest language of a text, and its probability among all that are known."""
    code, score = _identifier().classify(text)
    return Language(str(code), float(score))


def share_in(text: str, language: str) -> float:
    """How much of a text, by its letters, is in a language: its pieces of some 200 characters are judged one by one."""
    if language == ANY:
        return 1.0
    pieces = _pieces(text)
    letters = [sum(map(str.isalpha, piece)) for piece in pieces]
    inside = sum(count for piece, count in zip(pieces, letters, strict=True) if language_of(piece).fits(language))
    return inside / sum(letters) if sum(letters) else 0.0


def _pieces(text: str) -> list[str]:
    """A text cut at white space, the last piece joined to that before it where it is short."""
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
    """The library's own model, with probabilities."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    try:
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError as error:  # it unpacks the file
        raise no_room(error) or error from None
