"""What the tests of reports start from."""

from __future__ import annotations

import pytest

from reprune.doors.drawing import figures


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a report's time: tests of its words and files do without."""
    monkeypatch.setattr(figures, "draw", lambda *_, **__: '<svg role="img" aria-label="picture"></svg>')
