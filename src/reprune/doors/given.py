"""Makes one recipe of all that is given for a run: flags, settings and a recipe in any form. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from operator import index
from typing import Any, TypeVar

import torch

from reprune.doors.found import model_text
from reprune.engine.watcher import Watcher
from reprune.errors import InputError, of_type
from reprune.files.local import local_path
from reprune.planning.idle import idle_notes
from reprune.planning.layers import parse_setting, read_recipe, recipe_of, resolve_recipe
from reprune.planning.recipe import MOST_NAMES, Recipe

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One SOURCE, or several."""
Events = TypeVar("Events")
A_PRUNER = "the name of a pruner (for one of your own see docs/extending.md)"
A_SOURCE = "a source, such as a file (write texts that are in memory to one, as JSON lines)"
A_SETTING = "a string 'key.path=value' (nested settings may be given as recipe={...})"


def several(what: str, given: Any, expected: str = "a name") -> list[str]:
    """One value or several, as a list of texts; raises `InputError` if one is neither a text nor a path."""
    if given is None:
        return []
    alone = isinstance(given, str | os.PathLike | Mapping) or not isinstance(given, Iterable)
    names = list[str]()
    for one in [given] if alone else given:
        if not isinstance(one, str | os.PathLike):
            raise InputError(f"{what}: expected {expected}, or several, got {of_type(given)}.")
        if len(names) == MOST_NAMES:  # of an endless iterable, such as a generator of texts
            raise InputError(f"{what}: expected {expected}, or several, got more than {MOST_NAMES:,} texts.")
        names.append(os.fspath(one))
    return names


def whole_numbers(what: str, given: Any) -> list[int]:
    """Whole numbers as a list, such as those of a range or an array; raises `InputError` for anything else."""
    with suppress(TypeError):
        found = list(islice(given, MOST_NAMES + 1))
        if len(found) <= MOST_NAMES and not any(isinstance(one, bool) for one in found):
            return [index(one) for one in found]
    raise InputError(f"{what}: expected a list of whole numbers, such as [0, 1], got {given!r:.80}.")


def whole_number(what: str, given: Any) -> int | None:
    """A whole number, or None; raises `InputError` for anything else."""
    if given is None:
        return None
    if not isinstance(given, bool):
        with suppress(TypeError):
            return index(given)
    raise InputError(f"{what}: expected a whole number, got {given!r:.80}.")


def listening(watcher: Any, kind: type[Events]) -> Events:
    """A caller's watcher, or one that ignores all events; raises `InputError` if it lacks a method of that kind."""
    if watcher is None:
        return kind()
    methods = [name for name in vars(kind) if not name.startswith("_")]
    if isinstance(watcher, type) or not all(callable(getattr(watcher, name, None)) for name in methods):
        raise InputError(f"watcher: expected an object of a subclass of {kind.__name__}, got {of_type(watcher)}.")
    found: Events = watcher
    return found


def nested_flags(
    *,
    epochs: int | None = None,
    lr: float | str | None = None,
    batch_size: int | None = None,
    pruner: str | None = None,
    calibration: Sources | None = None,
    heldout: Sources | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    sparsity: float | str | None = None,
    device: str | torch.device | None = None,
    **plain: Any,
) -> dict[str, Any]:
    """Flags at their places in a recipe; those not given (None, empty) are left out."""
    if pruner is not None and not isinstance(pruner, str):
        raise InputError(f"pruner: expected {A_PRUNER}, got {of_type(pruner)}.")
    solver = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
    content = {
        "pruner": {"name": pruner} if pruner is not None else None,
        "solver": {key: value for key, value in solver.items() if value is not None} or None,
        "calibration": several("calibration", calibration, A_SOURCE) or None,
        "heldout": several("heldout", heldout, A_SOURCE) or None,
        "include": several("include", include) or None,
        "exclude": several("exclude", exclude) or None,
        "sparsity": sparsity,
        "device": str(device) if isinstance(device, torch.device) else device,
        **plain,
    }
    return {key: value for key, value in content.items() if value is not None}


def recipe_contents(recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None) -> dict[str, Any]:
    """The contents of a recipe, which is given as a file, a mapping or a `Recipe`; of a run's record, its recipe."""
    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="json")
    if recipe is None or isinstance(recipe, Mapping):
        return dict(recipe_of(recipe or {}))
    if not isinstance(recipe, str | os.PathLike):
        raise InputError(f"recipe: expected a file, its contents as a dict, or a record, got {of_type(recipe)}.")
    return read_recipe(local_path(recipe))


def made_recipe(
    model: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None,
    flags: Mapping[str, Any],
    settings: str | Sequence[str],
    watcher: Watcher,
) -> Recipe:
    """The recipe made of all that is given; raises `InputError` if it is not valid.

    The watcher is told of settings without effect, and of a recipe file that lets code run.
    """
    content = recipe_contents(recipe)
    nested, settings = nested_flags(**flags), several("settings", settings, A_SETTING)
    made = resolve_recipe(model_text(model), content, nested, settings)
    for note in idle_notes([made], nested, map(parse_setting, settings)):
        watcher.note(note)
    if said := said_trusting(recipe, content, made, flags.get("trust_remote_code")):
        watcher.note(said)
    return made


def said_trusting(recipe: object, content: Mapping[str, Any], made: Recipe, flag: bool | None) -> str | None:
    """A note if a recipe file lets code run that no flag has allowed."""
    in_file = isinstance(recipe, str | os.PathLike) and content.get("trust_remote_code")
    if in_file and made.trust_remote_code and not flag:
        return f"{recipe} sets trust_remote_code: Python code that comes with the model is run"
    return None
