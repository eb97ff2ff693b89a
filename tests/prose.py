"""A stand-in for what a real model writes."""

from __future__ import annotations

import pytest

from reprune.planning.generation import rounds
from reprune.planning.generation.filters import InLanguage, Judgement, NoCode, NotRepetitive
from reprune.planning.generation.language import Language


def write_as_if_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept what a model of random weights writes as English prose."""
    monkeypatch.setattr(rounds, "language_of", lambda text: Language("en", 1.0))
    for kind in (InLanguage, NoCode, NotRepetitive):
        monkeypatch.setattr(kind, "judge", lambda self, text: Judgement(1.0, None))
