"""Finds and replaces the local path in a SOURCE such as `texts/a.jsonl:body=64`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from reprune.files.local import local_path
from reprune.model.snapshots import called, hub_commit
from reprune.planning.recipe import Recipe
from reprune.planning.sources import real_path, split_count, split_path

_NEAR = 3  # folders from a result up to a common ancestor with its texts: from a study's cell to the study's parent


def with_path(source: str, change: Callable[[Path], object]) -> str:
    """The source with its local path changed; unchanged if it begins with no path that exists or is absolute."""
    name, count = split_count(source)
    found = split_path(name)
    if found is None and Path(name).is_absolute():
        found = Path(name), ""  # a text that is gone since the run began
    if found is None:
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
    return with_paths(recipe, real_path)


def beside(recipe: Recipe, folder: Path, model: Path) -> Recipe:
    """The recipe as it is written in `folder`: paths are relative to it, and the model is reduced to its name.

    `model` is the folder that the model was found in.

    Of a path that is not near only the last part is kept, so that no private folders are named. It has to be given
    again, as the model always has.
    """
    written = with_paths(recipe, lambda path: _from(folder.resolve(), real_path(path)))
    return written.model_copy(update={"model": local_name(recipe.model, model)})


def _from(folder: Path, path: Path) -> str:
    common = Path(os.path.commonpath([folder, path]))
    near = common in [folder, *folder.parents][: _NEAR + 1] and common != Path(common.anchor)
    if near or path.parent in folder.parents:  # in the latter case the relative path names no folder
        return os.path.relpath(path, folder)
    return last_part(path)


def own_name(path: Path) -> str:
    """The last part of a path, or the name of the folder that `.` or `..` stands for."""
    return path.name if path.name.strip(".") else path.resolve().name


def last_part(path: Path) -> str:
    """A path without its folders; the leading `./` keeps it from being read as a known name or a Hub id."""
    return f"./{path.name}"


def on_record(model: str, folder: Path) -> dict[str, str]:
    """A MODEL's name for the record and, if it was given by its Hub id, the commit of the folder found.

    A link to such a folder counts as a local model, without a commit.
    """
    named = {"name": local_name(model, folder)}
    return {**named, "commit": folder.name} if _is_id(model, folder) else named


def local_name(model: str | os.PathLike[str], folder: Path) -> str:
    """The last part of a MODEL that is a local path, a Hub id unchanged; `folder` is where the model was found.

    It is the same in every working folder, as a run may go on in another one than it began in.
    """
    if _is_id(name := os.fspath(model), folder):
        return name
    last = local_path(name).name
    return last if last.strip(".") else called(folder)


def _is_id(model: str, folder: Path) -> bool:
    """Whether a MODEL that was found in `folder` was given by its Hub id, which the cache names that folder after."""
    return hub_commit(folder) is not None and called(folder) == model.partition("@")[0]
