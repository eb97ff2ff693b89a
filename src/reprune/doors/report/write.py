"""`reprune report`: one HTML file on a run or a study, from the records alone. Loads no model."""

from __future__ import annotations

import os
from pathlib import Path

from reprune.doors.records.run import Run
from reprune.doors.report.page import MARK, check_extra, render
from reprune.doors.report.read import read_records
from reprune.doors.report.run import run_page
from reprune.doors.report.study import study_page
from reprune.errors import InputError
from reprune.files.durable import refusing, write_text
from reprune.files.local import local_path

NAME = "report.html"


def report(directory: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report on a folder that `prune` or `study` wrote.

    Args:
        directory: holds reprune.json or study.json.
        out: the file to write; by default report.html in the folder. An earlier report there is replaced.

    Returns:
        The file written.

    Raises:
        InputError: the folder holds no record, or one that cannot be read; `out` exists and is not a report; an extra
            is not installed. Nothing is written then.
    """
    folder = local_path(directory, "directory")
    file = folder / NAME if out is None else local_path(out, "out")
    record = read_records(folder)
    with refusing(file):
        _check(file)
    check_extra()
    text = render(run_page(record) if isinstance(record, Run) else study_page(record))
    with refusing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return file


def _check(file: Path) -> None:
    """Refuse to write over anything but a report."""
    if file.is_dir():
        raise InputError(f"{file} is a folder; give --out the name of the HTML file to write")
    if not file.exists():
        return
    if not file.is_file():  # reading it might wait for ever
        raise InputError(f"{file} is a pipe or a device; give --out the name of the HTML file to write")
    with file.open("rb") as there:
        if MARK.encode() not in there.read(4096):
            raise InputError(f"{file} exists and is not a report of reprune; give another --out, or move it away")
