"""A figure is one SVG element for a page or a file: it takes the page's colours and shows what is known, no more."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import pytest

from reprune.doors.drawing import figures
from reprune.doors.drawing.svg import PALETTE, style
from reprune.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"
WINDOWS = {"calibration": [0.1, 0.08, 0.05], "held-out": [0.12, 0.11, 0.11]}

EVERY: dict[str, Callable[[str], str]] = {
    "error_by_block": lambda title: figures.error_by_block(WINDOWS, title=title, ylabel="error"),
    "calibration_against": lambda title: figures.calibration_against(
        [("wanda LR", 0.1, 0.12), ("wanda BR", 0.05, 0.1), ("magnitude LR", 0.3, 0.4)], title=title, ylabel="test"
    ),
    "error_by_epoch": lambda title: figures.error_by_epoch([0.1, 0.05], [0.1, 0.2], kept=0, title=title),
    "by_rung": lambda title: figures.by_rung(
        {"wanda": [[60.5, 61.0], [52.3]]},
        ["LR", "BR"],
        title=title,
        ylabel="perplexity",
        joined=2,
        dense=27.0,
    ),
    "by_number": lambda title: figures.by_number(
        {"wanda BR": [(0, 60.0), (0, 61.0), (32, 58.0), (512, 55.0)]},
        title=title,
        ylabel="perplexity",
        dense=27.0,
    ),
    "seconds_by_window": lambda title: figures.seconds_by_window([1.0, 2.0], title=title),
    "change_by_window": lambda title: figures.change_by_window({"held-out": [-0.2, 0.1]}, title=title, ylabel="change"),
    "share_by_matrix": lambda title: figures.share_by_matrix({"mlp.up_proj": [0.5, None]}, title=title),
}
every = pytest.mark.parametrize("name", EVERY)


def texts(svg: str) -> list[str]:
    """All texts in a picture."""
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg: str, number: int) -> list[int]:
    """The number of points of each line of a series, without marks and legend."""
    color = style(number).color
    paths = ElementTree.fromstring(svg).iter(f"{SVG}path")
    drawn = [path for path in paths if f"stroke:{color}" in path.get("style", "") and path.get("clip-path")]
    return [len(re.findall("[ML]", path.get("d", ""))) for path in drawn]


@every
def test_a_figure_is_one_element_that_leaks_nothing_into_its_page(name: str) -> None:
    svg = EVERY[name]("Error & title")
    root = ElementTree.fromstring(svg)  # well-formed, also as a separate file
    assert root.tag == f"{SVG}svg"
    assert (root.get("role"), root.get("aria-label")) == ("img", "Error & title")
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert svg.startswith("<svg ")
    assert "Error & title" in texts(svg)
    rules = "".join(style.text or "" for style in root.iter(f"{SVG}style"))
    selectors = re.findall(r"([^{}]+)\{", rules)
    assert {selector for selector in selectors if not selector.startswith("@")} == {"svg:root"}  # no page has that
    assert not re.findall(r"https?://(?!www\.w3\.org)", svg)
    assert "font-family" not in svg.replace(rules, "").replace("&apos;", "'")
    assert "<script" not in svg


@every
def test_every_colour_is_one_that_a_page_can_change(name: str) -> None:
    svg = EVERY[name]("t")
    light = {value: role for role, (value, _) in PALETTE.items()}
    declared = re.findall(
        r"(fill|stroke):(#[0-9a-f]{6});(?:(fill|stroke):var\(--figure-(\w+),(#[0-9a-f]{6})\))?", svg + ";"
    )
    assert declared
    for what, value, again, role, fallback in declared:
        assert (again, role, fallback) == (what, light[value], value)
    assert len(re.findall(r"(?:fill|stroke):#", svg)) == len(declared)


@every
def test_the_same_numbers_give_the_same_bytes_whatever_the_readers_own_settings(name: str) -> None:
    first = EVERY[name]("t")
    theirs = {"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": None, "xtick.direction": "in", "axes.labelpad": 30}
    with matplotlib.rc_context(theirs):
        assert EVERY[name]("t") == first
    assert not re.search(r"\b20\d\d-\d\d-\d\d", first)


def test_ids_are_a_figures_own_and_all_of_them_are_there() -> None:
    drawn = [make(f"figure {name}") for name, make in EVERY.items()]
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in drawn]
    assert len({one for found in ids for one in found}) == sum(map(len, ids)) > 10
    for svg, found in zip(drawn, ids, strict=True):
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        assert set(used) == set(found)


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", "$x_1$", "_hidden", 'url(#x)" id="y', "模型"])
def test_a_name_is_shown_as_it_is_whatever_is_in_it(label: str) -> None:
    svg = figures.error_by_block({label: [1.0, 2.0], "other": [2.0, 3.0]}, title=label, ylabel=label)
    shown = [text.strip("\N{HAIR SPACE}") for text in texts(svg)]
    assert shown.count(label) == 3  # title, axis, legend
    assert ElementTree.fromstring(svg).get("aria-label") == label
    assert not list(ElementTree.fromstring(svg).iter(f"{SVG}script"))


def test_a_long_name_leaves_room_for_what_is_drawn() -> None:
    long = "a/very/long/name/" * 20 + "end"
    drawn = [
        figures.error_by_block({long: [1.0], "b": [2.0]}, title=long, ylabel=long),
        figures.calibration_against([(f"wanda {long}", 1.0, 2.0)], title=long, ylabel=long),
        figures.by_rung({long: [[1.0], [2.0]]}, [long, "BR"], title=long, ylabel=long, joined=2),
        figures.share_by_matrix({long: [0.5]}, title=long),
    ]
    for svg in drawn:  # and matplotlib does not warn that no room is left for the axes
        assert ElementTree.fromstring(svg).get("aria-label") == long
        assert max(map(len, texts(svg))) <= 50
        assert any(text.startswith("a/very/") and text.endswith("end") for text in texts(svg))


def test_what_xml_refuses_is_left_out_of_a_name() -> None:
    svg = figures.error_by_block({"a\x00b": [1.0], "c\ud800d": [1.0]}, title="e\x1bf", ylabel="g")
    svg.encode()
    assert {"a b", "c d", "e f"} <= set(texts(svg))


def test_what_is_not_known_is_a_gap() -> None:
    whole = figures.error_by_block({"a": [1.0, 2.0, 3.0, 4.0]}, title="t", ylabel="y")
    assert lines(whole, 0) == [4]
    for missing in (None, math.nan, math.inf):
        svg = figures.error_by_block({"a": [1.0, 2.0, missing, 4.0]}, title="t", ylabel="y")
        assert lines(svg, 0) == [3]
        assert texts(svg) == texts(whole), "the axes are those of what is known"
        assert "nan" not in svg
        assert "inf" not in svg
    against = figures.calibration_against([("w LR", 0.1, None), ("w BR", 0.1, 0.2)], title="t", ylabel="y")
    assert "BR" in texts(against)
    assert "LR" not in texts(against)


@pytest.mark.parametrize(
    "empty",
    [
        lambda: figures.error_by_block({}, title="t", ylabel="y"),
        lambda: figures.error_by_block({"a": [None], "b": []}, title="t", ylabel="y"),
        lambda: figures.calibration_against([], title="t", ylabel="y"),
        lambda: figures.error_by_epoch([], [None], kept=0, title="t"),
        lambda: figures.by_rung({"a": [[], [None]]}, ["LR", "BR"], title="t", ylabel="y", joined=2),
        lambda: figures.by_number({"a": []}, title="t", ylabel="y"),
        lambda: figures.seconds_by_window([], title="t"),
        lambda: figures.share_by_matrix({}, title="t"),
        lambda: figures.error_by_block({"a": [0.0, 0.0]}, title="t", ylabel="y"),
    ],
)
def test_nothing_known_is_an_empty_figure(empty: Callable[[], str]) -> None:
    assert "t" in texts(empty())


def test_an_axis_is_logarithmic_where_the_small_values_would_be_flat() -> None:
    def ticks(values: list[float], percent: bool = False) -> list[str]:
        return texts(figures.error_by_block({"a": values}, title="t", ylabel="y", percent=percent))

    assert {"0", "1", "2", "3"} <= set(ticks([1.0, 3.0]))
    assert {"1", "10", "100", "1,000", "10,000", "10⁵", "10⁶"} <= set(ticks([1.0, 1.5e6]))
    assert "0.1" not in ticks([1.0, 1e6])
    assert {"0 %", "2 %", "10 %"} <= {text.replace("\N{NO-BREAK SPACE}", " ") for text in ticks([0.05, 0.11], True)}
    assert {"0.1 %", "1 %"} <= {text.replace("\N{NO-BREAK SPACE}", " ") for text in ticks([0.001, 0.02], True)}


def test_a_ladder_is_joined_and_auto_stands_apart() -> None:
    rungs = [("LR", 0.1, 0.1), ("BR", 0.05, 0.07), ("BR+GP", 0.02, 0.03), ("auto", 0.018, 0.025)]
    joined = figures.calibration_against([(f"wanda {name}", x, y) for name, x, y in rungs], title="t", ylabel="y")
    assert lines(joined, 0) == [3]
    assert {"LR", "BR", "BR+GP", "auto", "wanda"} <= set(texts(joined))
    seeds = [(f"wanda {name}", x * factor, y) for name, x, y in rungs for factor in (1, 1.1)]
    assert lines(figures.calibration_against(seeds, title="t", ylabel="y"), 0) == [3]
    plain = figures.calibration_against([("before", 0.1, 0.1), ("before", 0.2, 0.2)], title="t", ylabel="y")
    assert lines(plain, 0) == []
    by_rung = figures.by_rung({"a": [[1.0], [2.0], [3.0]]}, ["LR", "BR", "auto"], title="t", ylabel="y", joined=2)
    assert lines(by_rung, 0) == [2]


def test_numbers_stand_where_they_were_measured_and_seeds_are_joined_at_their_mean() -> None:
    points = [(512, 3.0), (0, 1.0), (32, 2.0), (0, 1.5), (128, 2.5)]
    svg = figures.by_number({"a": points}, title="t", ylabel="y")
    assert lines(svg, 0) == [4]
    assert {"0", "32", "128", "512"} <= set(texts(svg))


def test_names_never_stand_where_they_could_be_taken_for_anothers() -> None:
    crowd = [(f"wanda BR+GP+CR{i}", 0.1 + 0.0001 * i, 0.1) for i in range(30)]
    svg = figures.calibration_against([*crowd, ("wanda alone", 1.0, 1.0)], title="t", ylabel="y")
    assert "alone" in texts(svg)
    assert sum(text.startswith("BR+GP+CR") for text in texts(svg)) <= 2


def test_series_differ_in_more_than_their_colour() -> None:
    styles = [style(number) for number in range(6)]
    for what in ("color", "dash", "marker"):
        assert len({str(getattr(one, what)) for one in styles}) == 6
    assert len({(one.color, one.marker) for one in map(style, range(12))}) == 12


# Colour vision deficiencies by Machado, Oliveira and Fernandes 2009, at full severity, on linear RGB
_SIGHT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "full sight": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
}
_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def linear(color: str) -> list[float]:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def times(matrix: list[list[float]], vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def lab(rgb: list[float]) -> tuple[float, float, float]:
    """CIE L*a*b* of linear RGB."""
    xyz = times(_XYZ, [min(max(part, 0.0), 1.0) for part in rgb])
    f = [
        math.cbrt(part / white) if part / white > 0.008856 else 7.787 * part / white + 16 / 116
        for part, white in zip(xyz, (0.9505, 1.0, 1.089), strict=True)
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
def test_colours_are_legible_on_their_ground(which: int) -> None:
    def luminance(role: str) -> float:
        return times(_XYZ, linear(PALETTE[role][which]))[1]

    for role in ("ink", "muted", *"123456"):
        low, high = sorted((luminance(role), luminance("surface")))
        assert (high + 0.05) / (low + 0.05) >= 4.5, role  # WCAG AA, for text


@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sight", _SIGHT)
def test_colours_are_told_apart_by_those_who_see_fewer_of_them(which: int, sight: str) -> None:
    seen = {role: lab(times(_SIGHT[sight], linear(PALETTE[role][which]))) for role in "123456"}
    for one, other in itertools.combinations(seen, 2):
        assert math.dist(seen[one], seen[other]) > 10, (one, other)  # an eye just tells a distance of 2 apart


def test_without_matplotlib_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs matplotlib; install it with: pip install 'reprune\[report\]'"):
        figures.seconds_by_window([1.0], title="t")
