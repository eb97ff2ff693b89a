"""Finds the model that a user names; says of a folder without a model whether it holds a run or a study."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from reprune.doors.status import what_is_there
from reprune.errors import InputError, of_type
from reprune.files.local import local_path
from reprune.model.locate import locate_headers, locate_model
from reprune.model.undownloaded import Undownloaded

Located = TypeVar("Located")


def model_text(model: object) -> str:
    """The name of a model as text; raises `InputError` for a model in memory, or anything else without a name."""
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"model: expected a folder, a Hub id or a .gguf file, got {of_type(model)}; save a model that is in "
            "memory, and its tokenizer, with save_pretrained, and give that folder."
        )
    return os.fspath(model)


def find_model(model: str | os.PathLike[str], *, notify: Callable[[str], None], weights: bool = True) -> Path:
    """As `locate_model`, but the error for the folder of a run or a study says what it holds.

    Raises:
        InputError: the model does not exist or cannot be used.
    """
    return _located(model, partial(locate_model, notify=notify, weights=weights))


def find_headers(model: str | os.PathLike[str], *, notify: Callable[[str], None]) -> tuple[Path, Undownloaded | None]:
    """As `find_model`, but the weights of a Hub model are not downloaded: what is not here of them is returned.

    Raises:
        InputError: the model does not exist or cannot be used.
    """
    return _located(model, partial(locate_headers, notify=notify))


def _located(model: str | os.PathLike[str], locate: Callable[[str], Located]) -> Located:
    name, said = model_text(model), None
    try:
        return locate(name)
    except InputError:
        with suppress(OSError, ValueError):  # the name is not a path
            said = what_is_there(local_path(model))
        if said is None:
            raise
    raise InputError(f"{model}: {said}.")
