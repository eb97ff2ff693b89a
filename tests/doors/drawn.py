"""What tests of pages and figures have in common: pictures that are not drawn, but kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

Drawn = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]
"""By a picture's title: what it is drawn from."""


def keep_drawn(monkeypatch: pytest.MonkeyPatch, module: Any, names: Sequence[str]) -> Drawn:
    """Have these functions of a module draw nothing; what they will have been given."""
    found: Drawn = {}

    def draw(*given: Any, **options: Any) -> str:
        found[options["title"]] = given, options
        return "<svg/>"

    for name in names:
        monkeypatch.setattr(module, name, draw)
    return found
