"""Reads the records that `prune` and `study` leave, and refuses what it can't read. Knows nothing of pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from reprune.doors.records.run import Run, fault
from reprune.doors.records.study import FILE as STUDY
from reprune.doors.records.study import Study
from reprune.engine.ledger import Ledger
from reprune.engine.names import RECORD
from reprune.errors import InputError
from reprune.files.wellformed import read_json


def read_records(folder: Path) -> Run | Study:
    """What `folder` holds: the record of a study or that of a run.

    Raises:
        InputError: it holds neither, or one that cannot be read, is damaged or of another version.
    """
    ledger = Ledger(folder)
    begun = ledger.exists  # first, as it refuses a folder that cannot be looked into
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that `reprune prune` or `reprune study` wrote")
    if (folder / STUDY).is_file():
        return _read(folder / STUDY, Study)
    if (folder / RECORD).is_file():
        return _read(folder / RECORD, Run)
    if begun:
        raise InputError(f"{folder}: {ledger.way_on}, then make the report.")
    raise InputError(
        f"{folder} holds neither {RECORD} nor {STUDY}; give the folder that `reprune prune` or `reprune study` wrote"
    )


_Record = TypeVar("_Record", Run, Study)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _read(path: Path, kind: type[_Record]) -> _Record:
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise InputError(
            f"{path} is damaged: it is not valid JSON ({error}); run the command that wrote it again"
        ) from None
    try:
        return kind.model_validate(_printable(content))
    except ValidationError as error:
        raise InputError(
            f"{path} is not a record that this version of reprune can read: {fault(error)}; "
            "make the report with the version that wrote the record, or run the command again"
        ) from None


def _printable(content: Any) -> Any:
    """`content`, its texts without characters that a page can't hold."""
    match content:
        case str():
            return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", content)
        case list():
            return [_printable(value) for value in content]
        case dict():
            return {_printable(key): _printable(value) for key, value in content.items()}
        case _:
            return content
