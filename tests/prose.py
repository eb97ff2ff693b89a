"""A stand-in for what a real model writes."""

from __future__ import annotations

import pytest

from reprune.planning.generation import rounds
from reprune.planning.generation.filters import InLanguage, Judgement, NoCode, NotRepetitive
from reprune.planning.generation.language import Language


def write_as_if_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what a model of random weights writes for English, and for no code."""
    monkeypatch.setattr(rounds, "language_of", lambda text: Language("en", 1.0))
    for kind in (InLanguage, NoCode, NotRepetitive):
        monkeypatch.setattr(kind, "judge", lambda self, text: Judgement(1.0, None))
