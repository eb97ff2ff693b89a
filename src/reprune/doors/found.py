"""Finds the model that a user names, and says what a folder is that is none: of an unfinished run, or of a study."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from reprune.doors.records.study import FILE as STUDY
from reprune.engine.ledger import Ledger
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


def what_is_there(folder: Path) -> str | None:
    """What a folder without a result holds, and the way on; None where that is neither a run nor a study."""
    if (ledger := Ledger(folder)).exists:
        return ledger.way_on
    if (folder / STUDY).is_file():
        return (
            f"holds a study: 'reprune report {shlex.quote(str(folder))}' shows it, and the 'reprune study' that began "
            f"it goes on with it; the models of its cells, where --keep-models was given, are {folder / 'cells'}/NAME"
        )
    return None
