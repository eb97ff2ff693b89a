"""A picture's legend fits its width, long names are cut in the middle, and a separate file can turn dark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprune.doors.drawing import figures
from reprune.doors.drawing.svg import PALETTE, _declarations, _wide, legend, short
from tests.engine.together import SOURCES


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        (["abcde"], 1),
        (["abcde"] * 4, 4),
        (["abcde"] * 5, 3),  # two lines need no more columns
        (["abcde"] * 6, 3),
        (["abcde"] * 9, 3),
        (["a" * 30] * 3, 1),
        (["a" * 100] * 2, 1),
        (["a" * 15, "a" * 15, "b", "b"], 2),
    ],
)
def test_a_legend_has_as_many_columns_as_fit(labels: list[str], columns: int) -> None:
    made: list[dict[str, Any]] = []
    axes = SimpleNamespace(figure=SimpleNamespace(legend=lambda handles, shown, **options: made.append(options)))
    legend(axes, [None] * len(labels), labels)
    assert [one["ncols"] for one in made] == [columns]


@pytest.mark.parametrize(("columns", "wide"), [(1, 20), (2, 10 + 20), (3, 10 + 20 + 2), (5, 10 + 1 + 1 + 20 + 2)])
def test_a_legend_s_entries_go_down_its_columns_the_first_of_which_are_the_longer(columns: int, wide: int) -> None:
    assert _wide([10, 1, 1, 20, 2], columns) == wide


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("0123456789", "0123456789"),
        ("0123456789a", "0123…6789a"),
        ("0123 456 789a", "0123…789a"),
        ("01\n3456789", "01 3456789"),
    ],
)
def test_a_long_name_keeps_its_beginning_and_its_end(text: str, cut: str) -> None:
    assert short(text, 10) == cut


def test_figures_of_one_title_have_ids_of_their_own() -> None:
    one, other = (figures.seconds_by_window([seconds], title="t") for seconds in (1.0, 2.0))
    ids = [{part.partition('"')[0] for part in svg.split(' id="')[1:]} for svg in (one, other)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]


def test_a_file_of_its_own_is_dark_where_the_system_is() -> None:
    svg = figures.seconds_by_window([1.0], title="t")
    _, _, dark = svg.partition("prefers-color-scheme:dark")
    assert all(f"--figure-{role}:{value}" in dark for role, (_, value) in PALETTE.items())


def test_a_font_as_older_releases_of_matplotlib_write_it_keeps_its_size_and_weight() -> None:
    css = "font: bold 13px 'DejaVu Sans', sans-serif; text-anchor: start"
    assert [*_declarations(css)] == ["font-size:13px", "font-weight:bold", "text-anchor:start"]
    assert [*_declarations("font: 12px 'DejaVu Sans'")] == ["font-size:12px"]


def test_matplotlib_says_nothing_where_it_can_keep_nothing(tmp_path: Path) -> None:
    """As in a container whose home folder is not there, or may not be written to."""
    (tmp_path / "file").touch()
    code = "from reprune.doors.drawing.svg import draw; print(len(draw(lambda axes: None, title='t', height=200)) > 0)"
    there = {**os.environ, "PYTHONPATH": str(SOURCES), "MPLCONFIGDIR": str(tmp_path / "file" / "x")}
    said = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "True\n", "")
