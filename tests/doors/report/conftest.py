"""Fixtures for the tests of reports."""

from __future__ import annotations

import pytest

from reprune.doors.drawing import figures


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, which take most of a report's time: tests of its words and files do not need them."""
    monkeypatch.setattr(figures, "draw", lambda *_, **__: '<svg role="img" aria-label="picture"></svg>')
