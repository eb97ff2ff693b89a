"""Helpers that the tests of recipes and of their layers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import settings

from reprune.planning.layers import read_recipe
from reprune.planning.recipe import Recipe

FEW = settings(deadline=None, max_examples=60)


def read(text: str, folder: Path) -> dict[str, Any]:
    """Read a recipe file with this text."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


def rung(recipe: Recipe) -> tuple[str, int, int, str, str]:
    """A recipe's rung, and its values on the three axes."""
    schedule = recipe.schedule
    return recipe.reconstruct, schedule.size, schedule.stride, recipe.teacher, recipe.solver.name
