"""Finds the model that a user names, and says of a folder that is none whether it is a run's or a study's."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from reprune.doors.status import what_is_there
from reprune.errors import InputError, of_type
from reprune.files.local import local_path
from reprune.model.locate import locate_model


def model_text(model: object) -> str:
    """A model as it is named; raises `InputError` where it is one in memory, or what else has no name."""
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"model: expected a folder, a Hub id or a .gguf file, got {of_type(model)}; save a model that is in "
            "memory, and its tokenizer, with save_pretrained, and give that folder."
        )
    return os.fspath(model)


def find_model(model: str | os.PathLike[str], *, notify: Callable[[str], None], weights: bool = True) -> Path:
    """`locate_model`, which knows nothing of what runs and studies leave.

    Raises:
        InputError: there is no such model that can be used.
    """
    name, said = model_text(model), None
    try:
        return locate_model(name, notify=notify, weights=weights)
    except InputError:
        with suppress(OSError, ValueError):  # of a name that is no path
            said = what_is_there(local_path(model))
        if said is None:
            raise
    raise InputError(f"{model}: {said}.")
