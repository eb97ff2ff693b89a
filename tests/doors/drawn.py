"""Shared by tests of pages and figures: records what pictures are drawn from, and draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

Drawn = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]
"""By a picture's title: the arguments that it is drawn from."""


def keep_drawn(monkeypatch: pytest.MonkeyPatch, module: Any, names: Sequence[str]) -> Drawn:
    """Replace these functions of a module by ones that draw nothing; returns the arguments of their calls."""
    found: Drawn = {}

    def draw(*given: Any, **options: Any) -> str:
        found[options["title"]] = given, options
        return "<svg/>"

    for name in names:
        monkeypatch.setattr(module, name, draw)
    return found
