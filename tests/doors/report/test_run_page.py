"""A run's page shows each number of the record in its place, in pictures and in their tables."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.doors.records.run import Run
from reprune.doors.report import run as report
from reprune.doors.report.page import Page, Table
from reprune.doors.report.text import NONE
from tests.doors.drawn import Drawn, keep_drawn
from tests.doors.report.records import block, distilled, fitted, run_record, window

PICTURES = (
    *("calibration_against", "change_by_window", "error_by_block", "error_by_epoch", "seconds_by_window"),
    "share_by_matrix",
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What is drawn, by its title."""
    return keep_drawn(monkeypatch, report, PICTURES)


def paged(count: int = 2, **changes: Any) -> Page:
    return report.run_page(Run.model_validate(run_record(count, **changes)))


def rows(page: Page, caption: str) -> list[list[str]]:
    """The rows of the table with this caption, with plain signs and spaces."""
    tables: list[Table] = [one.table for section in page.sections for one in section.plots]
    found = next(table for table in tables if table.caption == caption)
    return [
        [cell.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-") for cell in row] for row in found.rows
    ]


def test_errors_by_block_are_shown_in_both_forms(drawn: Drawn) -> None:
    normalized = {"calibration_error": 2.0, "heldout_error": 5.0}
    blocks = [block(0, 0.01, 0.02), block(1, 0.02, 0.03) | normalized]
    page = paged(blocks=[{**one, "matrices": []} for one in blocks])
    (relative,), _ = drawn["Relative error by block"]
    assert relative == {"calibration": [0.01, 0.02], "held-out": [0.02, 0.03]}
    (series,), _ = drawn["Normalized error by block"]
    assert series == {"calibration": [0.01, 2.0], "held-out": [0.02, 5.0]}
    assert rows(page, "Relative error by block")[1] == ["1", "2.00 %", "3.00 %", "1.50"]
    assert rows(page, "Normalized error by block")[1] == ["1", "2.000", "5.000", "2.50"]
    tiles = {tile.name: tile.value.replace("\N{NO-BREAK SPACE}", " ") for tile in page.tiles}
    assert (tiles["Calibration error"], tiles["Held-out error"]) == ("2.00 %", "3.00 %")


def test_windows_are_shown_before_and_after_and_how_they_changed(drawn: Drawn) -> None:
    one = window(0, [0.4, 0.2, 0.1], [0.5, 0.3, 0.4], blocks=[0, 1], kept=1, planned=5)
    page = paged(windows=[{**one, "reconstructed": [1], "seconds": 7.0}])
    (points,), _ = drawn["Each window's two errors"]
    assert points == [("before", 0.4, 0.5), ("after", 0.2, 0.3)]
    (changes,), _ = drawn["What reconstruction changed"]
    assert changes == {"calibration": [pytest.approx(-0.5)], "held-out": [pytest.approx(-0.4)]}
    (row,) = rows(page, "Relative errors of each window, before and after its reconstruction")
    assert row[:8] == ["0", "0, 1", "40.0 %", "20.0 %", "-50.0 %", "50.0 %", "30.0 %", "-40.0 %"]
    assert row[8:] == ["1 of 2, stopped early", "1", "7.0 s"]
    by_epoch = rows(page, "Window 0: relative error by epoch")
    assert [one[-1] for one in by_epoch] == ["", "kept", ""]
    assert drawn["Window 0 (blocks 0, 1) by epoch"][1]["kept"] == 1
    assert (drawn["Time by window"][0], rows(page, "Time by window")) == (([7.0],), [["0", "0, 1", "7.0 s"]])


def test_windows_without_epochs_are_shown_as_they_ended(drawn: Drawn) -> None:
    one = fitted(0, epochs=0)
    one["relative_calibration_error"]["after"] = 0.25
    paged(windows=[one])
    (((label, x, _),),), _ = drawn["Each window's two errors"]
    assert (label, x) == ("pruned", 0.25)


def test_what_distillation_did_is_drawn_by_epoch_and_said_from_before_to_after(drawn: Drawn) -> None:
    epochs = [{"epoch": 1, "calibration_divergence": 0.07, "heldout_divergence": 0.08}]
    page = paged(distillation={**distilled(0.08), "epochs": epochs})
    title = "Divergence of predictions by epoch"
    assert drawn[title][0] == ([None, 0.07], [0.1, 0.08])
    assert [row[1:] for row in rows(page, title)] == [[NONE, "0.1000", ""], ["0.07000", "0.08000", "kept"]]
    [section] = [section for section in page.sections if section.anchor == "predictions"]
    text = " ".join(section.intro).replace("\N{NO-BREAK SPACE}", " ")
    assert "went from 0.1000 to 0.08000 nats per token" in text
    assert "compares outputs and not predictions, went from 2.00 % to 3.00 %." in text
    costs = [dict(next(one for one in each.sections if one.anchor == "cost").pairs) for each in (page, paged())]
    assert [cost.get("Of which distillation", "").replace("\N{NO-BREAK SPACE}", " ") for cost in costs] == ["3.0 s", ""]


@pytest.mark.parametrize(("blocks", "said"), [([1], "Block 1 was fitted"), ([0, 1], "Blocks 0-1 were fitted")])
def test_one_block_or_several_were_distilled(blocks: list[int], said: str) -> None:
    page = paged(distillation={**distilled(0.08), "blocks": blocks})
    [section] = [section for section in page.sections if section.anchor == "predictions"]
    assert section.intro[0].startswith(said)


def test_of_a_group_the_window_that_rose_most_is_shown(drawn: Drawn) -> None:
    windows = [window(index, [1.0, 0.5], [1.0, last]) for index, last in enumerate((1.1, 1.5, 1.2))]
    found = Run.model_validate(run_record(windows=windows)).windows
    report.epochs_section([("a", f"w{one.index}", one) for one in found])
    assert list(drawn) == ["w1 (block 1) by epoch"]


def test_without_a_rise_the_window_of_the_widest_gap_comes_first(drawn: Drawn) -> None:
    paged(windows=[window(index, [1.0, 0.5], [1.0, last]) for index, last in enumerate((0.6, 0.9, 0.7, 0.8))])
    assert [title for title in drawn if "by epoch" in title] == [
        f"Window {index} (block {index}) by epoch" for index in (1, 3, 2)
    ]


def test_matrices_of_one_name_share_a_row_with_their_mean(drawn: Drawn) -> None:
    shares = [0.2, 0.6, *[0.5] * 28]
    matrices = [{"name": f"experts.{i}.up", "rows": 4, "columns": 4, "sparsity": s} for i, s in enumerate(shares)]
    page = paged(blocks=[block(0, 0.01, 0.02) | {"matrices": matrices}])
    (found,), _ = drawn["Share of zeros, by block and matrix"]
    assert found == {"experts.*.up": [pytest.approx(14.8 / 30)]}
    other = {"name": "experts.0.up", "rows": 4, "columns": 4, "sparsity": 0.25}
    two = [block(index, 0.01, 0.02) | {"matrices": one} for index, one in enumerate((matrices[:1], [other]))]
    assert rows(paged(blocks=two), "Share of zeros, by block and matrix") == [["0", "20.0 %"], ["1", "25.0 %"]]
    said = [next(one for one in each.sections if one.anchor == "sparsity").intro[0] for each in (page, paged())]
    assert ["share a row, which shows their mean" in one for one in said] == [True, False]


def test_the_time_of_writing_texts_is_told_beside_that_of_the_run() -> None:
    own = {"texts": 36, "seconds": 245.0, "peak_memory_bytes": {"host": 2 * 10**9, "device": 0}}
    page, plain = paged(self_generation=own), paged(self_generation=None)
    pairs = [next(one for one in each.sections if one.anchor == "cost").pairs for each in (page, plain)]
    wrote = "the model wrote 36 texts, or what its cache lacked of them, in 4:05"
    assert pairs[0][:2] == [("Before the run", wrote), ("Whole run", "2:02")]
    assert pairs[1][0] == ("Whole run", "2:02")
    notes = [next(tile.note for tile in each.tiles if tile.name == "Time") for each in (page, plain)]
    assert notes == ["without the model's texts", ""]
