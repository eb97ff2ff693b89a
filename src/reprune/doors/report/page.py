"""The parts of a report, and how they become one HTML file. Knows nothing of what they tell."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from reprune import __version__
from reprune.doors.drawing.svg import PALETTE
from reprune.doors.report.verdict import Verdict
from reprune.errors import InputError

MARK = '<meta name="generator" content="reprune report'
"""A file with this in its first bytes is a report."""


@dataclass(frozen=True)
class Table:
    """Rows of numbers as text; the first `labels` columns name what the numbers are of."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    best: frozenset[tuple[int, int]] = frozenset()
    """The (row, column) of each highlighted cell."""


@dataclass(frozen=True)
class Plot:
    """A picture as SVG text, its caption, and the numbers in it."""

    svg: str
    caption: str
    table: Table


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    caption: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading."""

    anchor: str
    heading: str
    intro: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    folded: Sequence[Table] = ()
    pairs: Sequence[tuple[str, str]] = ()
    codes: Sequence[Code] = ()


@dataclass(frozen=True)
class Tile:
    """One number to see at a glance."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report."""

    kind: str
    title: str
    subtitle: str
    verdict: Verdict
    tiles: Sequence[Tile]
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as one HTML text that needs no other file. Needs the packages that `check_extra` looks for."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("reprune.doors.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = environment.get_template("theme.js").render()
    return environment.get_template("page.html.j2").render(
        page=page,
        version=__version__,
        palette=PALETTE,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        svg=Markup,
    )


def check_extra() -> None:
    """Raise `InputError` unless the packages for reports are installed."""
    for module, name in (("matplotlib", "matplotlib"), ("jinja2", "Jinja2")):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"a report needs {name}; install it with: pip install 'reprune[report]'")
