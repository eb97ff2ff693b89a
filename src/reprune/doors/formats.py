"""How numbers are written for a person, and where they are written to."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reprune.doors.printable import complain, printable, unread

_WIDTH = 80  # of notes
_WIDEST = 10_000  # that a table may be where nothing says how wide it is shown


class _Output(Console):
    """Shows names that others gave as text, and work goes on where nobody reads of it any more."""

    def render_str(self, text: str, **options: Any) -> Text:  # of all that is printed, cells of tables too
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        unread()
        complain("nobody reads the output any more; the work goes on without it")


def console() -> Console:
    """Where output goes, as it is: names may have brackets and colons. Off a terminal, lines are not broken.

    It is interactive, so that a bar may be drawn, on a terminal alone: an environment that wants colours wherever
    output goes (FORCE_COLOR, as Jupyter sets for what a cell starts) wants no bar in a file.
    """
    output = _Output(highlight=False, markup=False, emoji=False, soft_wrap=True)
    terminal = output.is_terminal and _is_terminal(output.file)
    output.is_interactive &= terminal
    if not terminal and not os.environ.get("COLUMNS", "").strip("0"):
        output.width = _WIDEST
    elif output.width < 1:  # COLUMNS=0, in which nothing would be shown
        output.width = _WIDTH
    return output


def _is_terminal(file: Any) -> bool:
    """What a program has put in the place of its output need not say it, and may be closed."""
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):
        return False


def table(words: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """A table without lines: columns of words, by their headings, and then of numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in words:
        made.add_column(heading)
    for heading in numbers:
        made.add_column(heading, justify="right")
    return made


def percent(share: float) -> str:
    """0.1234 as 12.3 %, with three digits."""
    value = 100.0 * share
    return f"{value:.0f} %" if value >= 99.95 else f"{value:.1f} %" if value >= 9.995 else f"{value:.2f} %"


def clock(seconds: float) -> str:
    """Seconds as 12.3 s, 4:05 or 2:10:00."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Bytes in decimal units."""
    if count >= 999.5e6:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 999.5e3 else f"{count / 1e3:.0f} kB"


def nats(divergence: float) -> str:
    """A divergence with three digits."""
    return f"{divergence:.3g}"


def sparsities(recipe: Mapping[str, Any]) -> str:
    """What a recipe asks for: 0.5, and what else decides, as in 0.5 (owl), others by name."""
    allocation = recipe.get("allocation")
    way = allocation.get("name") if isinstance(allocation, Mapping) else allocation
    shared_out = "" if way in (None, "uniform") else f" ({way})"
    return f"{recipe['sparsity']}{shared_out}{', others by name' if recipe.get('sparsity_by_name') else ''}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """1 window, 2 windows."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def wrapped(note: str, indent: int = 6) -> str:
    """The lines of a note, those that are long as several; names and paths are not broken."""
    return "\n".join(
        textwrap.fill(line, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
        for line in note.split("\n")
    )
