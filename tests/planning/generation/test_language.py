"""The language of a text is identified as a whole and piece by piece."""

from __future__ import annotations

from pydoc_data.topics import topics

import pytest

from reprune.errors import InputError
from reprune.planning.generation import language as module
from reprune.planning.generation.language import language_of, require_language, share_in

GERMAN = "Der Rat traf sich am Donnerstag, um über die Reparatur der alten Brücke zu sprechen. " * 4
ENGLISH = "The council met again on Thursday to discuss the repair of the old bridge in the town. " * 4


@pytest.mark.parametrize(
    ("text", "code"),
    [(ENGLISH, "en"), (GERMAN, "de"), ("In the beginning of", "en"), ("los niños de la escuela", "es")],
)
def test_a_language_has_a_code_and_a_score(text: str, code: str) -> None:
    found = language_of(text)
    assert found.code == code
    assert 0 < found.score <= 1
    assert found.fits(code)
    assert found.fits("any")
    assert not found.fits("fr")


def test_the_share_is_that_of_the_pieces() -> None:
    assert share_in(ENGLISH, "en") == 1
    assert share_in(ENGLISH, "de") == 0
    assert 0.3 < share_in(ENGLISH + GERMAN, "en") < 0.7
    assert share_in("12 + 34 = 46", "en") == 0, "no letters"
    assert share_in("", "en") == 0
    assert share_in(ENGLISH + GERMAN, "any") == share_in("12 + 34 = 46", "any") == 1


def test_pieces_hold_every_word_once() -> None:
    words = topics["with"].split()
    pieces = module._pieces(topics["with"])
    assert " ".join(pieces).split() == words
    assert all(100 <= len(piece) < 400 for piece in pieces)


@pytest.mark.parametrize(("words", "pieces"), [(59, [59]), (60, [40, 20]), (80, [40, 40]), (99, [40, 59]), (0, [0])])
def test_a_short_rest_is_no_piece_of_its_own(words: int, pieces: list[int]) -> None:
    assert [len(piece.split()) for piece in module._pieces("four " * words)] == pieces


def test_pieces_count_by_their_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "language_of", lambda piece: module.Language("de" if "1" in piece else "en", 1.0))
    assert share_in("four " * 40 + "1111 " * 39 + "four", "en") == 160 / 164


def test_a_language_that_is_not_known_is_refused() -> None:
    require_language("en")
    require_language("any")
    with pytest.raises(InputError, match=r"--language xx: expected any, or a code of ISO 639 among .*, de, .*"):
        require_language("xx")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'reprune\[generate\]'"):
        require_language("en")
