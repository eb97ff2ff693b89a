"""The `reprune report` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reprune.doors.command.options import Quiet, exit_codes


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that prune or study wrote.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The file to write. [DIR/report.html]")] = None,
    quiet: Quiet = False,
) -> None:
    """Write one HTML file on a run or a study: a verdict in words, pictures, tables, how to reproduce it."""
    with exit_codes():
        from reprune.doors.report.write import report as write_report

        file = write_report(directory, out)
        if not quiet:
            print(f"report  {file}")
