"""Draws one SVG picture with matplotlib, made for a page: light and dark, with the page's font. Knows no runs.

A picture is an `<svg>` element in an HTML page or alone in a file. Its colours are CSS custom properties
(`--figure-ink`, `--figure-1`, ...) with the light palette as their fallback: a page sets them as it likes, and a
separate file follows the system's dark setting. The same numbers give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

from reprune.errors import InputError
from reprune.model.quiet import quiet_logger

WIDTH = 400
"""In pixels: a phone shows it nearly unscaled, so that text stays legible."""

PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1b2026", "#e8ecf1"),
    "muted": ("#555f6b", "#a4afbc"),
    "grid": ("#dfe3e8", "#333b46"),
    "surface": ("#fefefe", "#161b22"),
    "1": ("#0067a8", "#58b4f0"),
    "2": ("#c44e00", "#f58e4e"),
    "3": ("#00845f", "#35cb9d"),
    "4": ("#a93d84", "#ea9fce"),
    "5": ("#26221c", "#f0e442"),
    "6": ("#8a22dd", "#9d78ff"),
}
"""The (light, dark) colours of each role; those of series are Okabe and Ito's, darker or lighter for contrast."""

_DASHES: Sequence[Any] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 2.5)), (0, (3, 1)))
_MARKERS = "osD^vP"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_ROLES = {light: role for role, (light, _) in PALETTE.items()}
_UNDATED = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Style:
    """How a series is told apart: by its colour, its dashes and its markers."""

    color: str
    dash: Any
    marker: str


def style(number: int) -> Style:
    """The style of series `number`, counted from 0."""
    return Style(
        PALETTE[str(number % 6 + 1)][0],
        _DASHES[number % len(_DASHES)],
        _MARKERS[(number + number // 6) % len(_MARKERS)],
    )


def color(role: str) -> str:
    """The colour to draw a role of `PALETTE` with; a page replaces it by its own."""
    return PALETTE[role][0]


def draw(paint: Callable[[Any], None], *, title: str, height: int) -> str:
    """One picture as SVG text.

    Args:
        paint: draws on the one matplotlib axes that it is given.
        title: shown above the picture, and read to those who can't see it.
        height: in pixels, including the title and the legend.

    Raises:
        InputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a figure needs matplotlib; install it with: pip install 'reprune[report]'")
    heading = "\n".join(textwrap.wrap(short(title, 120), int(WIDTH / 8.8))) or " "
    with quiet_logger("matplotlib"):  # it would tell where it keeps its settings and its list of fonts
        import matplotlib
        from matplotlib.figure import Figure

        with warnings.catch_warnings(), matplotlib.rc_context():
            matplotlib.rcdefaults()  # the user's own settings are for other pictures
            matplotlib.rcParams.update(_SETTINGS)
            # matplotlib's font only measures text: the page's font may have glyphs that it lacks
            warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
            figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
            axes = figure.subplots()
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
            figure.suptitle(heading, x=0.005, ha="left", fontsize=13, fontweight="bold")
            paint(axes)
            written = io.StringIO()
            figure.savefig(written, format="svg", metadata=_UNDATED, transparent=True)
    return _for_a_page(written.getvalue(), plain(title), height)


def legend(axes: Any, handles: Sequence[Any], labels: Sequence[str], handlelength: float = 2.6) -> None:
    """A legend below the axes, in as many columns as its labels leave room for."""
    labels = [short(label, 34) for label in labels]
    entries = [12 * handlelength + 28 + 6.8 * len(label) for label in labels]
    most = max(number for number in range(1, len(labels) + 1) if number == 1 or _wide(entries, number) < WIDTH - 8)
    columns = math.ceil(len(labels) / math.ceil(len(labels) / most))  # no more than needed for that many lines
    # matplotlib leaves out labels that begin with an underscore
    shown = [f"\N{HAIR SPACE}{label}" if label.startswith("_") else label for label in labels]
    axes.figure.legend(
        handles,
        shown,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        handlelength=handlelength,
        columnspacing=1.6,
    )


def _wide(entries: Sequence[float], columns: int) -> float:
    """The width of a legend whose entries fill it column by column."""
    high, longer = divmod(len(entries), columns)
    starts = [column * high + min(column, longer) for column in range(columns + 1)]
    return sum(max(entries[start:end]) for start, end in pairwise(starts))


def short(text: str, most: int) -> str:
    """`text` without its middle if it is longer than `most`: a long name would leave no room for what is drawn."""
    text = plain(text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2 - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}{text[-(most - most // 2) :].lstrip()}"


def plain(text: str) -> str:
    """`text` with spaces for characters that XML or UTF-8 refuses."""
    return re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", " ", text)


_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "reprune",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "figure.dpi": 72,
    "font.size": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "text.color": PALETTE["ink"][0],
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.edgecolor": PALETTE["muted"][0],
    "xtick.color": PALETTE["muted"][0],
    "ytick.color": PALETTE["muted"][0],
    "grid.color": PALETTE["grid"][0],
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "path.simplify": False,
}

_ALONE = (
    f"svg:root{{font-family:{_FONT};background:var(--figure-surface,{PALETTE['surface'][0]})}}"
    "@media (prefers-color-scheme:dark){svg:root{"
    + ";".join(f"--figure-{role}:{dark}" for role, (_, dark) in PALETTE.items())
    + "}}"
)
"""For a separate file: in a page, no `svg` is the root."""


def _for_a_page(svg: str, title: str, height: int) -> str:
    """matplotlib's file as one element: with ids of its own, no style that leaks, and colours as properties."""
    drawn = ElementTree.fromstring(svg)
    used = {
        name: ""
        for element in drawn.iter()
        for value in element.attrib.values()
        for name in re.findall(r"^(?:url\()?#(.+?)\)?$", value)
    }
    own = hashlib.sha256(f"{title}\n{svg}".encode()).hexdigest()[:10]
    used = {name: f"f{own}-{number}" for number, name in enumerate(used)}
    root = ElementTree.Element("svg")
    root.extend(child for child in drawn if child.find(f"{_SVG}style") is None)  # its one rule is for `*`
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.tail = None
        if element.tag not in ("text", "tspan"):
            element.text = None
        element.attrib = dict(_attributes(element, used))
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "xmlns:xlink": "http://www.w3.org/1999/xlink",
        "class": "figure",
        "role": "img",
        "aria-label": title,
        "width": str(WIDTH),
        "height": str(height),
        "viewBox": f"0 0 {WIDTH} {height}",
        "stroke-linejoin": "round",
    }
    alone = ElementTree.Element("style")
    alone.text = _ALONE
    root.insert(0, alone)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _attributes(element: ElementTree.Element, ids: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in element.attrib.items():
        if name == "id":
            if value in ids:
                yield name, ids[value]
        elif name == "style":
            yield name, ";".join(_declarations(value))
        elif found := re.fullmatch(r"(url\()?#(.+?)(\))?", value):
            yield name.replace(_XLINK, "xlink:"), f"{found[1] or ''}#{ids[found[2]]}{found[3] or ''}"
        else:
            yield name, re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", " ".join(value.split()))


def _declarations(css: str) -> Iterator[str]:
    for declaration in css.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font-family":  # the page's font is used
            continue
        if name == "font":  # matplotlib 3.8 writes size and family like this, perhaps after a weight
            *weight, size = value.partition("'")[0].split()
            yield f"font-size:{size}"
            yield from (f"font-weight:{word}" for word in weight)
            continue
        yield f"{name}:{value}"
        if name in ("fill", "stroke") and value in _ROLES:
            yield f"{name}:var(--figure-{_ROLES[value]},{value})"  # the one above: for viewers without var()
