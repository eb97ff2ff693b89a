"""Finds the local path in a SOURCE such as `texts/a.jsonl:body=64`, and puts another in its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from reprune.files.local import local_path
from reprune.model.locate import by_commit
from reprune.model.snapshots import hub_commit
from reprune.planning.recipe import Recipe
from reprune.planning.sources import split_count, split_path

_NEAR = 3  # folders up to what a result and its texts share: of a study's cell to that which the study is in


def with_path(source: str, change: Callable[[Path], object]) -> str:
    """The source with its local path changed; one that begins with no path that exists comes back as it is."""
    name, count = split_count(source)
    if (found := split_path(name)) is None:
        return source
    path, parts = found
    return f"{change(path)}{parts}{count}"


def with_paths(recipe: Recipe, change: Callable[[Path], object]) -> Recipe:
    """The recipe with the local paths of its sources changed."""
    changed = {
        key: [with_path(source, change) for source in getattr(recipe, key)] for key in ("calibration", "heldout")
    }
    return recipe.model_copy(update=changed)


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that it means the same from every folder."""
    return with_paths(recipe, lambda path: path.resolve())


def beside(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe as it is written in `folder`: paths relative to it, and the model, always given anew, by name.

    Of a path that is not near, which names folders that are nobody's business, the last part is left, to be given anew.
    """
    written = with_paths(recipe, lambda path: _from(folder.resolve(), path.resolve()))
    return written.model_copy(update={"model": local_name(recipe.model)})


def _from(folder: Path, path: Path) -> str:
    common = Path(os.path.commonpath([folder, path]))
    near = common in [folder, *folder.parents][: _NEAR + 1] and common != Path(common.anchor)
    if near or path.parent in folder.parents:  # the latter names no folder at all
        return os.path.relpath(path, folder)
    return last_part(path)


def last_part(path: Path) -> str:
    """What is left of a path without its folders: with the dot it is a path still, and not c4 or a Hub id."""
    return f"./{path.name}"


def on_record(model: str, folder: Path) -> dict[str, str]:
    """What a MODEL is called on record, and of one that is given by its Hub id the commit whose folder was found.

    A link to such a folder is a local model, which is given by no commit.
    """
    commit = hub_commit(folder)
    named = {"name": local_name(model)}
    return named if commit is None or by_commit(model, commit) is None else {**named, "commit": commit}


def local_name(model: str) -> str:
    """The last part of a MODEL that is a local path; a Hub id as it is."""
    path = local_path(model)
    return path.name if path.is_absolute() or path.exists() else model
