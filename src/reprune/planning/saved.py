"""Finds the files that hold the rows of a folder written by `save_to_disk` of the `datasets` library.

Caches and shards of an earlier save may lie beside them, so the folder's own lists decide. Reads no rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reprune.errors import InputError
from reprune.files.wellformed import read_json

STATE = "state.json"  # of a data set, and of each split of a dictionary of them
NO_TEXT = "expected at least one row of text, but there is none; give another"

_SPLITS = "dataset_dict.json"  # of a dictionary


def saved_files(folder: Path, config: str | None, split: str | None, usual: str, label: str) -> tuple[Path, ...] | None:
    """The files of a split in the order of their rows; None if the folder was not written by `save_to_disk`.

    `config` and `split` are as the user gave them; `split` may join several by +, and `all` is every one. Without one,
    it is the split `usual` of a saved dictionary, or the only split of a data set saved alone. The latter is called
    `train` if it has no name, and a part such as train[:50%] is called by its whole split's name. `label` is what
    messages call the place.

    Raises InputError if there is no such configuration or split, or if it has no files.
    """
    files = _shards(folder)
    if files is not None:
        own = _own_split(folder)
        if split not in (None, "all") and _names(split) != _names(own):
            raise InputError(
                f"{label}: expected {own!r}, the only split that was saved there, but got {split!r}; leave it out"
            )
    else:
        names = _listed(folder / _SPLITS, "splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        files = _files_of(folder, names, split or usual, label)
    if config not in (None, "default"):
        raise InputError(
            f"{label}: expected no configuration, as saved data sets have none, but got {config!r}; leave it out, or "
            "name a split as in FOLDER::SPLIT, a column as in FOLDER:::COLUMN"
        )
    if not files:  # an empty data set
        raise InputError(f"{label}: {NO_TEXT}")
    return tuple(files)


def _own_split(folder: Path) -> str:
    """The split of one saved data set, several joined by +; within a saved dictionary, its folder's name."""
    among = _listed(folder.parent / _SPLITS, "splits")
    if isinstance(among, list) and folder.name in among:
        return folder.name  # the splits that `train_test_split` makes are all called train in their own state
    return "+".join(_names(str(_listed(folder / STATE, "_split") or "train")))


def _names(splits: str) -> dict[str, None]:
    """The names of splits joined by +, each once, without slices such as [:50%]."""
    return dict.fromkeys(part.partition("[")[0].strip() for part in splits.split("+"))


def _files_of(folder: Path, names: list[str], wanted: str, label: str) -> list[Path]:
    """The files of the wanted splits of a dictionary with splits of these names."""
    files: list[Path] = []
    for name in names if wanted == "all" else [part.strip() for part in wanted.split("+")]:
        if name not in names:
            raise InputError(
                f"{label}: expected a split that was saved there ({', '.join(names) or 'none'}), but got {name!r}; "
                "name one as in FOLDER::SPLIT"
            )
        if (shards := _shards(folder / name)) is None:
            raise InputError(
                f"{label}: expected {name}/{STATE} to list the split's files, but it does not; save the data set again"
            )
        files.extend(shards)
    return files


def _shards(folder: Path) -> list[Path] | None:
    """The files of one data set; None if none was saved in this folder."""
    files = _listed(folder / STATE, "_data_files")
    try:
        return None if files is None else [folder / file["filename"] for file in files]
    except (KeyError, TypeError):
        return None


def _listed(file: Path, key: str) -> Any:
    """The value of a key in a JSON file; None if there is no such file or key."""
    try:
        content = read_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get(key) if isinstance(content, dict) else None
