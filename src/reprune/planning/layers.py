"""Merges a recipe from its layers, each overriding those before: defaults, file, flags, `--set key.path=value`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from reprune.errors import InputError
from reprune.files.wellformed import read_json
from reprune.files.yaml_text import read_yaml
from reprune.planning.recipe import RUNG_SETTINGS, Recipe, in_full
from reprune.planning.sources import split_count, split_path

_TOLD = 10  # errors of a recipe that a message lists


def read_recipe(path: Path) -> dict[str, Any]:
    """The contents of a recipe file, or of the recipe in a run's record.

    Raises:
        InputError: the file cannot be read, or is not a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = _in_record(text) or read_yaml(text)
    except OSError as error:
        raise InputError(f"--recipe {path}: cannot be read ({error.strerror}); check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"--recipe {path}: cannot be read (it is not UTF-8); convert it to UTF-8.") from None
    except yaml.YAMLError as error:
        said = " ".join(str(error).split()).replace('"<unicode string>", ', "")  # PyYAML's name of the text
        raise InputError(f"--recipe {path}: not valid YAML: {said}") from None
    except RecursionError:
        raise InputError(f"--recipe {path}: nested too deeply to be read.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"--recipe {path}: expected keys and values, such as 'sparsity: 0.5'; got {content!r:.80}.")
    for key in Recipe.model_fields:
        if content.get(key, {}) is None and _keys((key,)):  # a part whose lines are all comments
            content[key] = {}
    for key in ("calibration", "heldout"):
        if isinstance(given := content.get(key), list | str):
            sources = [given] if isinstance(given, str) else given
            content[key] = [_found_beside(source, path.parent) for source in sources]
    return content


def _in_record(text: str) -> dict[str, Any] | None:
    """The recipe in a run's record, which is JSON and may be longer than YAML may be; None for any other text."""
    with suppress(ValueError):
        if isinstance(content := read_json(text), dict):
            recipe = recipe_of(content)
            return None if recipe is content else dict(recipe)
    return None


def recipe_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe in a run's record (reprune.json, whose `model` is a mapping); other contents are a recipe already."""
    recipe = content.get("recipe")
    return recipe if isinstance(recipe, Mapping) and isinstance(content.get("model"), Mapping) else content


def _found_beside(source: Any, folder: Path) -> Any:
    """A source of a recipe file; a relative path that exists in that file's folder is taken from there."""
    if not isinstance(source, str):
        return source
    there = split_path(split_count(source, folder)[0], folder)
    return source if there is None else str(folder / source)


def parse_setting(text: str) -> dict[str, Any]:
    """Parse one `key.path=value` of --set, whose value is YAML, into nested mappings."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise InputError(f"--set {text}: expected key.path=value, such as --set schedule.size=3.")
    try:
        content: Any = read_yaml(value)
    except (yaml.YAMLError, RecursionError):
        raise InputError(f"--set {text:.200}: the value is not valid YAML.") from None
    for part in reversed(key.strip().split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    return content


def resolve_recipe(
    model: str,
    file: Mapping[str, Any] = {},
    flags: Mapping[str, Any] = {},
    settings: Sequence[str] = (),
) -> Recipe:
    """Merge the layers and validate the result.

    Args:
        model: MODEL as given.
        file: a recipe file's contents.
        flags: the command-line flags, nested as in the recipe.
        settings: `key.path=value` strings.

    Raises:
        InputError: an unknown key (the nearest known one is named) or a value that does not fit.
    """
    recipe = lay_over(model, file, flags, settings)
    recipe.pruner.build()  # checks pruners of other packages and their settings
    return recipe


def lay_over(model: str, file: Mapping[str, Any], flags: Mapping[str, Any], settings: Sequence[str]) -> Recipe:
    """As `resolve_recipe`, but without checking that the pruner exists and takes its settings: a study has several."""
    lower, above = _normal(file), [_normal(flags)]
    for setting in settings:
        parsed = parse_setting(setting)
        if "model" in parsed:
            raise InputError(f"--set {setting}: the model is given by MODEL; leave this out.")
        above.append(_normal(parsed))
    if any("reconstruct" in layer for layer in above):  # that rung overrides the file's settings of its three axes
        lower = {key: value for key, value in lower.items() if key not in ("schedule", "teacher")}
        if isinstance(lower.get("solver"), dict):
            lower["solver"] = {key: value for key, value in lower["solver"].items() if key != "name"}
    if _pruner(lower) not in (None, _pruner(reduce(_merged, above, lower))):  # the file's settings are of its pruner
        lower = _merged(lower, {"pruner": {"settings": {}}})
    merged = reduce(_merged, above, lower)
    merged["model"] = model
    rung = RUNG_SETTINGS.get(str(merged.get("reconstruct", Recipe.model_fields["reconstruct"].default)), {})
    try:
        return Recipe.model_validate(_merged(rung, merged))
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def _pruner(layer: Mapping[str, Any]) -> Any:
    """The name of the pruner in a layer, or None if it names none."""
    pruner = layer.get("pruner")
    return pruner.get("name") if isinstance(pruner, dict) else None


def _normal(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: in_full(key, _without_paths(value)) for key, value in layer.items()}


def _without_paths(value: Any) -> Any:
    """Convert a path, alone or in a list, to the string that a recipe file would have; leave other values."""
    if isinstance(value, list | tuple):
        return [_without_paths(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if not (isinstance(below, dict) and isinstance(value, dict)):
            merged[key] = value
        elif key == "sparsity_by_name":  # the first pattern that fits decides, so the upper layer's come first
            merged[key] = {**value, **below, **value} if value else {}
        elif key == "settings" and not value:
            merged[key] = {}
        else:
            merged[key] = _merged(below, value)
    return merged


def _explain(error: ValidationError) -> str:
    """The errors of a recipe, one per line, at most the first `_TOLD`."""
    lines = []
    for problem in error.errors():
        place = _place(problem["loc"])
        if (unspaced := _unspaced(problem["loc"], problem["input"])) is not None:
            lines.append(unspaced)
        elif problem["type"] == "extra_forbidden":
            known = _keys(problem["loc"][:-1])
            meant = _meant(problem["loc"], known)
            asked = f"; did you mean {' or '.join(meant)}?" if meant else "."
            lines.append(f"{place}: unknown key{asked} Known here: {', '.join(known)}.")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            said = said.removeprefix(f"{place}: ").rstrip(".")
            whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)  # an error of a whole part
            got = "" if whole or "got " in said else f" (got {problem['input']!r:.80})"
            lines.append(f"{place}: {said[0].lower() + said[1:]}{got}." if place else f"{said}.")
    if len(lines) > _TOLD:
        lines[_TOLD:] = [f"And {len(lines) - _TOLD} more."]
    return "\n".join(lines)


def _place(location: tuple[int | str, ...]) -> str:
    """The dotted key of a value; in a pruner's settings, without the type that pydantic adds after each part."""
    if location[:2] == ("pruner", "settings"):
        location = (*location[:2], *location[2::2])
    return ".".join(str(part) for part in location)


def _unspaced(location: tuple[int | str, ...], value: Any) -> str | None:
    """The message for a key that contains its value, as YAML reads {key:value}; None for any other key."""
    word = str(location[-1]) if location else ""
    key, colon, meant = word.partition(":")
    if value is not None or not (key and colon and meant):
        return None
    place = ".".join(str(part) for part in location[:-1]) or word
    return (
        f"{place}: expected a space after the colon, which YAML needs between a key and its value: {{{key}: {meant}}} "
        f"(got {{{word}}})."
    )


def _meant(location: tuple[int | str, ...], known: Sequence[str]) -> list[str]:
    """Keys that an unknown one may stand for: those of this name in a part (flags have no parts), or a similar one."""
    name = str(location[-1])
    parts = [part for part in Recipe.model_fields if len(location) == 1 and name in _keys((part,))]
    return [f"{part}.{name}" for part in parts] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The known keys of the part of a recipe at `location`; none for a value without parts."""
    part: type[BaseModel] = Recipe
    for step in location:
        annotation = part.model_fields[str(step)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        part = annotation
    return list(part.model_fields)
