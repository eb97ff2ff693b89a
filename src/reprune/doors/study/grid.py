"""The grid of a study: its cells, their order, and each one's recipe. Knows nothing of running them.

A cell is one combination of the axes (pruner, rung, part of the block, seed, number of self-generated samples); all
else is the same for all cells.
A new axis takes a field in `Cell` and in `Grid`, and its key in `VARIED`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

from reprune.doors.formats import counted
from reprune.errors import InputError
from reprune.planning.axes import ALL, PARTS, PRUNERS, RUNGS, place
from reprune.planning.layers import lay_over, parse_setting
from reprune.planning.paths import own_name, with_paths
from reprune.planning.pruners import known, unknown
from reprune.planning.recipe import Recipe, in_full

VARIED = {
    "pruner.name": "--pruners",
    **dict.fromkeys(("reconstruct", "schedule", "teacher", "solver.name"), "--rungs"),
    "only": "--only",
    "seed": "--seeds",
    "self_generate.samples": "--self-generate",
}
"""The keys of a recipe in which cells differ, each with the flag of the axis that decides it."""


@final
@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    pruner: str
    rung: str
    only: str
    seed: int
    self_generate: int = 0  # samples that the model writes itself

    @property
    def name(self) -> str:
        """The name of its folder, as wanda-BR+GP-seed0 or wanda-BR+GP-mlp-self32-seed0."""
        part = [self.only] if self.only != ALL else []
        own = [f"self{self.self_generate}"] if self.self_generate else []
        return "-".join([self.pruner, self.rung, *part, *own, f"seed{self.seed}"])

    @property
    def samples(self) -> str:
        """The key of its samples: 0, or 0+32 with 32 self-generated ones. Cells with the same key share them."""
        return f"{self.seed}+{self.self_generate}" if self.self_generate else str(self.seed)

    @property
    def place(self) -> tuple[Any, ...]:
        """Sorts cells by what decides their samples, so that those that share them follow each other; by rung last."""
        inside = place(PRUNERS, self.pruner), place(PARTS, self.only), place(RUNGS, self.rung)
        return self.seed, self.self_generate, *inside


@final
@dataclass(frozen=True)
class Grid:
    """The values of each axis."""

    pruners: tuple[str, ...]
    rungs: tuple[str, ...]
    only: tuple[str, ...]
    seeds: tuple[int, ...]
    self_generate: tuple[int, ...] = (0,)

    @staticmethod
    def of(
        pruners: Sequence[str],
        rungs: Sequence[str],
        only: Sequence[str],
        seeds: Sequence[int],
        self_generate: Sequence[int] = (0,),
    ) -> Grid:
        """Raises `InputError` if an axis has no value, or an unknown one."""
        axes = {"--pruners": pruners, "--rungs": rungs, "--only": only, "--seeds": seeds}
        for flag, values in {**axes, "--self-generate": self_generate}.items():
            if not values:
                raise InputError(f"{flag}: expected at least one value.")
        return Grid(
            _known("--pruners", pruners, known()),
            _known("--rungs", rungs, RUNGS),
            _known("--only", only, PARTS),
            tuple(dict.fromkeys(seeds)),
            tuple(dict.fromkeys(self_generate)),
        )

    def cells(self) -> list[Cell]:
        """All combinations, in the order in which they are run."""
        found = product(self.pruners, self.rungs, self.only, self.seeds, self.self_generate)
        return sorted((Cell(*values) for values in found), key=lambda cell: cell.place)

    def __str__(self) -> str:
        """3 pruners x 5 rungs x 2 seeds: the axes with more than one value, and the first two always."""
        axes = {"pruner": self.pruners, "rung": self.rungs, "part": self.only, "seed": self.seeds}
        axes["self-generated count"] = self.self_generate
        shown = {name: len(values) for name, values in axes.items() if len(values) > 1 or name in ("pruner", "rung")}
        return " x ".join(counted(count, name) for name, count in shown.items())


def _known(flag: str, given: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The values, each once, in their proper spelling; raises `InputError` for an unknown one."""
    by_name = {name.lower(): name for name in reversed(known)}  # the first of those that differ only in capitals
    for value in given:
        if value.lower() not in by_name:
            if flag == "--pruners":
                raise InputError(unknown(flag, value))
            near = difflib.get_close_matches(value.lower(), by_name, n=1)
            hint = f"; did you mean {by_name[near[0]]}?" if near else "."
            raise InputError(f"{flag} {value}: expected {', '.join(known[:-1])} or {known[-1]}{hint}")
    return tuple(dict.fromkeys(value if value in known else by_name[value.lower()] for value in given))


def base_recipe(model: str, file: Mapping[str, Any], flags: Mapping[str, Any], settings: Sequence[str]) -> Recipe:
    """The recipe that all cells begin from, except for its pruner, which each cell sets.

    Raises:
        InputError: the recipe does not fit, or `settings` set what the cells differ in.
    """
    for setting in settings:
        for key in flat({part: in_full(part, value) for part, value in parse_setting(setting).items()}):
            if flag := next((flag for varied, flag in VARIED.items() if f"{key}.".startswith(f"{varied}.")), None):
                raise InputError(f"--set {setting}: in a study, {flag} decides that; leave this out.")
    return lay_over(model, file, flags, settings)


def cell_recipes(
    cells: Iterable[Cell], model: str, file: Mapping[str, Any], flags: Mapping[str, Any], settings: Sequence[str]
) -> dict[Cell, Recipe]:
    """Each cell's recipe: the layers of `resolve_recipe`, with the cell's own axes above the flags.

    If some pruners are from packages, only these get `pruner.settings`.

    Raises:
        InputError: a cell's recipe does not fit; the cell is named. Or no pruner takes the settings.
    """
    made: dict[Cell, Recipe] = {}
    cells = list(cells)
    beside = any(cell.pruner not in PRUNERS for cell in cells)
    sources: dict[str, list[str]] = {}  # of cells without self-generated samples; the others use them too
    for cell in sorted(cells, key=lambda cell: cell.self_generate):
        own = {"pruner": {"name": cell.pruner}, "reconstruct": cell.rung, "only": cell.only, "seed": cell.seed}
        own["self_generate"] = {"samples": cell.self_generate}
        try:
            recipe = lay_over(model, file, {**flags, **sources, **own}, settings)
            made[cell] = _without_settings(recipe) if cell.pruner in PRUNERS and beside else recipe
            made[cell].pruner.build()
        except InputError as error:
            raise InputError(f"cell {cell.name}: {error}") from None
        if not cell.self_generate:
            sources = {"calibration": made[cell].calibration}
    return {cell: made[cell] for cell in cells}


def _without_settings(recipe: Recipe) -> Recipe:
    """The recipe without settings for a pruner from another package."""
    return recipe.model_copy(update={"pruner": recipe.pruner.model_copy(update={"settings": {}})})


def common(recipe: Recipe) -> dict[str, Any]:
    """The part of a cell's recipe that all cells share; local paths are reduced to their last part."""
    keys = (key.partition(".") for key in ("model", *VARIED))
    own: dict[str, Any] = {part: {inner} if inner else True for part, _, inner in keys}
    return with_paths(recipe, own_name).model_dump(mode="json", exclude=own)


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
