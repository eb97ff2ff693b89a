"""Python's garbage collection is deferred, and as before once the context ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from reprune.model import garbage
from reprune.model.garbage import few_searches, no_search


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.enable()
    gc.unfreeze()


@pytest.mark.parametrize("on", [True, False])
def test_nothing_is_searched_and_then_as_much_as_before(on: bool) -> None:
    if not on:
        gc.disable()
    with no_search():
        assert not gc.isenabled()
    assert gc.isenabled() == on


def test_it_is_searched_again_whatever_happens() -> None:
    with pytest.raises(KeyError), no_search():
        raise KeyError("any")
    assert gc.isenabled()


def test_a_program_is_searched_rarely_and_what_it_leaves_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_leaks_are_told", lambda: False)  # whatever the test run has imported
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(SystemExit), few_searches():
        assert gc.isenabled()
        assert gc.get_threshold()[0] >= 100 * 700
        raise SystemExit(0)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() > frozen


def test_what_a_program_leaves_is_cleared_where_a_library_would_say_that_it_was_not() -> None:
    class OfNanobind(type):
        __module__ = "nanobind"

    frozen = gc.get_freeze_count()
    with few_searches():
        pass
    assert gc.get_freeze_count() == frozen
