"""Formats numbers for people, and makes the console that they are printed on."""

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
_WIDEST = 10_000  # of tables, if the width of the output is unknown


class _Output(Console):
    """A console that replaces control characters, and lets the work go on if its reader has gone."""

    def render_str(self, text: str, **options: Any) -> Text:  # called for all that is printed, cells of tables too
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        unread()
        complain("nobody reads the output any more; the work goes on without it")


def console() -> Console:
    """The console for output. It reads no markup, as names may hold brackets, and off a terminal it wraps no lines.

    Only a terminal is interactive, so that bars may be drawn: an environment that asks for colours everywhere
    (FORCE_COLOR, which Jupyter sets for processes that a cell starts) does not ask for bars in files.
    """
    output = _Output(highlight=False, markup=False, emoji=False, soft_wrap=True)
    terminal = output.is_terminal and _is_terminal(output.file)
    output.is_interactive &= terminal
    if not terminal and not os.environ.get("COLUMNS", "").strip("0"):
        output.width = _WIDEST
    elif output.width < 1:  # COLUMNS=0, with which nothing would be shown
        output.width = _WIDTH
    return output


def _is_terminal(file: Any) -> bool:
    """Whether a file is a terminal; what a program has put in place of its output may lack `isatty`, or be closed."""
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):
        return False


def table(words: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """A table without rules: columns of words, then columns of numbers, by their headings."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in words:
        made.add_column(heading)
    for heading in numbers:
        made.add_column(heading, justify="right")
    return made


def percent(share: float) -> str:
    """0.1234 as 12.3 %, with three digits."""
    value = 100.0 * share
    if value >= 1e6:
        return f"{value:.3g} %"
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
    """A divergence as text, with three digits."""
    return f"{divergence:.3g}"


def shared_out(recipe: Mapping[str, Any]) -> Any:
    """The name of the way in which a recipe shares the sparsity out over blocks; None if all have the same."""
    allocation = recipe.get("allocation")
    way = allocation.get("name") if isinstance(allocation, Mapping) else allocation
    return None if way == "uniform" else way


def sparsities(recipe: Mapping[str, Any]) -> str:
    """The sparsity that a recipe asks for, and what else decides it: 0.5, or 0.5 (owl), others by name."""
    way = f" ({way})" if (way := shared_out(recipe)) else ""
    return f"{recipe['sparsity']}{way}{', others by name' if recipe.get('sparsity_by_name') else ''}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """1 window, 2 windows."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def wrapped(note: str, indent: int = 6) -> str:
    """A note with its long lines wrapped; names and paths are not broken."""
    return "\n".join(
        textwrap.fill(line, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
        for line in note.split("\n")
    )
