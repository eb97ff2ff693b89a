"""A study's page shows each number of the record in its place: in pictures, in their tables, and in tiles."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.doors.records.study import Study
from reprune.doors.report import selfmade
from reprune.doors.report import study as report
from reprune.doors.report.page import Page, Plot
from tests.doors.drawn import Drawn, keep_drawn
from tests.doors.report.records import cell, study_record


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What is drawn, by its title."""
    monkeypatch.setattr(report, "epochs_section", lambda trained: report.Section("epochs", ""))
    return keep_drawn(monkeypatch, report, ("by_rung", "calibration_against", "error_by_block"))


def paged(*cells: Any, **options: Any) -> Page:
    return report.study_page(Study.model_validate(study_record(cells, **options)))


def plot(page: Page, caption: str) -> Plot:
    """The picture whose table has this caption."""
    return next(one for section in page.sections for one in section.plots if one.table.caption == caption)


def flat(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_tiles_count_cells_and_add_up_their_time(drawn: Drawn) -> None:
    cells = [cell("wanda", "LR", seed=seed, seconds=60.0 + seed) for seed in (0, 1)]
    page = paged(*cells, cell("wanda", "BR", status="failed", seconds=None))
    tiles = {tile.name: (flat(tile.value), tile.note) for tile in page.tiles}
    assert tiles["Cells finished"] == ("2 of 3", "with 2 seeds")
    assert tiles["Time"] == ("2:01", "pruning and reconstruction, all cells")
    assert tiles["Dense perplexity on test.txt"][0] == "26.91"
    lowest = sum(one["perplexity"]["test.txt"] for one in cells) / 2
    assert tiles["Lowest perplexity on test.txt"] == (f"{lowest:.2f}", "wanda, LR")


def test_errors_by_block_and_against_each_other_are_what_they_are_named(drawn: Drawn) -> None:
    one = cell("wanda", "LR", relative_calibration_error=0.1, relative_heldout_error=0.2)
    for block in one["blocks"]:
        block |= {"relative_calibration_error": 0.01, "relative_heldout_error": 0.02}
    page = paged(one)
    for name, error in (("held-out error", 0.02), ("calibration error", 0.01)):
        (series,), _ = drawn[f"wanda: {name} by block"]
        assert series == {"LR": [error] * 4}
    (points,), _ = drawn["Calibration error against held-out error"]
    assert points == [("wanda LR", 0.1, 0.2)]
    assert plot(page, "wanda: calibration error by block").caption == ""
    of_two = paged(one, cell("wanda", "LR", seed=1))
    assert plot(of_two, "wanda: calibration error by block").caption == "Mean over the seeds."
    (row,) = plot(page, "Calibration error against held-out error").table.rows
    assert list(map(flat, row)) == ["wanda", "LR", "0", "10.0 %", "20.0 %", "2.00"]


def test_costs_are_in_their_units_and_the_devices_memory_apart(drawn: Drawn) -> None:
    page = paged(
        cell("wanda", "LR", seconds=120.0, peak_memory_bytes={"host": 10**9, "device": 3 * 10**9}),
        cell("wanda", "auto", seconds=240.0, peak_memory_bytes={"host": 2 * 10**9, "device": 0}),
    )
    for name, unit, values, said in (
        ("Time", "minutes", [[2.0], [4.0]], ["2:00", "4:00"]),
        ("Peak memory of the process", "GB", [[1.0], [2.0]], ["1.00 GB", "2.00 GB"]),
        ("Peak memory of the device", "GB", [[3.0], [0.0]], ["3.00 GB", "0 kB"]),
    ):
        (series, rungs), options = drawn[f"{name} by rung"]
        assert (series, rungs, options["ylabel"], options["joined"]) == ({"wanda": values}, ("LR", "auto"), unit, 1)
        assert list(map(flat, plot(page, f"{name} by rung").table.rows[0])) == ["wanda", *said]
    assert "Peak memory of the device by rung" not in [
        one.table.caption for section in paged(cell("wanda", "LR")).sections for one in section.plots
    ]


def test_the_dense_models_level_is_drawn_where_it_is_known(drawn: Drawn) -> None:
    paged(cell("wanda", "LR", zero_shot=True), zero_shot=True)
    levels = {title: options["dense"] for title, (_, options) in drawn.items() if "dense" in options}
    assert levels["Perplexity on test.txt by rung"] == 26.91
    assert levels["Mean zero-shot accuracy by rung"] == 0.55
    assert levels["Time by rung"] is None


def test_a_page_names_all_that_decides_the_sparsity() -> None:
    assert paged(cell("wanda", "LR")).subtitle == "wanda at 0.5, reconstruction LR"
    settings = {"sparsity": "0.5", "allocation": {"name": "owl"}, "sparsity_by_name": {"mlp.*": "0.7"}}
    assert paged(cell("wanda", "LR"), settings=settings).subtitle == (
        "wanda at 0.5 (owl), others by name, reconstruction LR"
    )


def test_results_of_several_seeds_are_told_as_what_they_are(drawn: Drawn) -> None:
    def intro(*cells: Any) -> str:
        return str(next(section for section in paged(*cells).sections if section.anchor == "results").intro)

    said = "Means over the seeds, with the lowest and the highest; of peak memory, the highest alone."
    assert said in intro(cell("wanda", "LR"), cell("wanda", "LR", seed=1))
    assert "seeds" not in intro(cell("wanda", "LR"))


def test_measures_by_self_generated_samples_are_what_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = keep_drawn(monkeypatch, selfmade, ("by_number",))
    monkeypatch.setattr(report, "epochs_section", lambda trained: report.Section("epochs", ""))
    values = {0: 40.0, 8: 30.0}
    paged(*(cell("wanda", "LR", self_generate=own, perplexity={"test.txt": values[own]}) for own in values))
    (series,), options = drawn["Perplexity on test.txt by self-generated samples"]
    assert series == {"wanda LR": [(0, 40.0), (8, 30.0)]}
    assert (options["dense"], options["percent"]) == (26.91, False)
    _, options = drawn["Held-out error by self-generated samples"]
    assert (options["dense"], options["percent"]) == (None, True)
