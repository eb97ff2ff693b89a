"""A study's figures show its record's numbers: means over seeds, block by block, each error under its own name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reprune.doors.drawing import figures as drawn
from reprune.doors.study.figures import write_figures
from reprune.doors.study.grid import Cell
from reprune.doors.study.record import CellRecord, StudyRecord, new_cell
from tests.doors.drawn import Drawn, keep_drawn
from tests.doors.report.records import study_record


def done(place: Cell, scale: float) -> CellRecord:
    """A finished cell of two blocks: errors of 1, 2 and 3 hundredths of the scale, ten times as large in the second."""
    cell = new_cell(place, "0.5")
    cell["status"] = "done"
    cell["blocks"] = [
        dict(
            index=index,
            sparsity=0.5,
            calibration_error=1.0,
            heldout_error=1.0,
            relative_calibration_error=0.01 * scale * 10**index,
            relative_heldout_error=0.02 * scale * 10**index,
            test_error={"a % b.txt": {"normalized": 1.0, "relative": 0.03 * scale * 10**index}},
        )
        for index in (0, 1)
    ]
    last = cell["blocks"][-1]
    cell["relative_calibration_error"] = last["relative_calibration_error"]
    cell["relative_heldout_error"] = last["relative_heldout_error"]
    cell["test_error"], cell["perplexity"] = last["test_error"], {"a % b.txt": 30.0 * scale}
    return cell


def studied(*cells: CellRecord) -> StudyRecord:
    record = study_record(cells)
    (measured,) = record["dense"]["perplexity"].values()
    record["dense"]["perplexity"] = {"a % b.txt": {**measured, "perplexity": 20.0}}
    return record


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What is drawn, by its title."""
    return keep_drawn(monkeypatch, drawn, ("error_by_block", "calibration_against", "by_number"))


def test_errors_by_block_are_means_over_the_seeds_of_each_rung(shown: Drawn, tmp_path: Path) -> None:
    cells = [done(Cell("wanda", "LR", "all", seed), scale) for seed, scale in enumerate((1.0, 2.0))]
    write_figures(tmp_path, studied(*cells, done(Cell("wanda", "BR", "all", 0), 0.5)), print)
    (series,), options = shown["Error by block, wanda"]  # the last of the three: test errors
    assert list(series) == ["LR", "BR"]
    assert (series["LR"], series["BR"]) == (pytest.approx([0.045, 0.45]), pytest.approx([0.015, 0.15]))
    assert options["ylabel"] == "test error, a % b.txt"
    for name, error in (("held-out error", 0.3), ("test error, a % b.txt", 0.45)):
        (points,), _ = shown[f"Calibration against {name}"]
        assert [point[0] for point in points] == ["wanda LR", "wanda BR"]
        assert points[0][1:] == pytest.approx((0.15, error))
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    kinds = ("blocks-calibration-wanda", "blocks-heldout-wanda", "blocks-test-a---b.txt-wanda")
    assert files == {f"{name}.svg" for name in (*kinds, "calibration-heldout", "calibration-test-a---b.txt")}


@pytest.mark.parametrize(("kind", "first"), [("calibration", 0.01), ("heldout", 0.02), ("test-a---b.txt", 0.03)])
def test_each_picture_by_block_is_of_the_error_that_it_is_named_for(
    kind: str, first: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "error_by_block", lambda series, **_: json.dumps(series["LR"]))
    monkeypatch.setattr(drawn, "calibration_against", lambda *_, **__: "")
    write_figures(tmp_path, studied(done(Cell("wanda", "LR", "all", 0), 1.0)), print)
    found = (tmp_path / "figures" / f"blocks-{kind}-wanda.svg").read_text(encoding="utf-8")
    assert json.loads(found) == pytest.approx([first, 10 * first])


def test_self_generated_samples_have_their_own_pictures_with_every_seed(shown: Drawn, tmp_path: Path) -> None:
    places = [Cell("wanda", "LR", "all", seed, own) for own in (0, 8) for seed in (0, 1)]
    cells = [done(place, scale) for place, scale in zip(places, (1.0, 2.0, 3.0, 4.0), strict=True)]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "of-before.svg").touch()
    write_figures(tmp_path, studied(*cells), print)
    assert not (tmp_path / "figures" / "of-before.svg").exists()
    assert {"Error by block, wanda", "Error by block, wanda+8"} <= set(shown)
    by_own = {title.partition(", by self")[0]: given for title, given in shown.items() if ", by self" in title}
    assert set(by_own) == {"Calibration error", "Held-out error", "Test error a % b.txt", "Perplexity a % b.txt"}
    (series,), options = by_own["Perplexity a % b.txt"]
    assert series == {"wanda LR": [(0, 30.0), (0, 60.0), (8, 90.0), (8, 120.0)]}
    assert (options["dense"], options["percent"]) == (20.0, False)
    (series,), options = by_own["Held-out error"]
    assert [value for _, value in series["wanda LR"]] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert (options["dense"], options["percent"]) == (None, True)


def test_cells_that_are_not_done_are_not_drawn(shown: Drawn, tmp_path: Path) -> None:
    write_figures(tmp_path, studied(new_cell(Cell("wanda", "LR", "all", 0), "0.5")), print)
    assert not shown
    assert not (tmp_path / "figures").exists()
    write_figures(tmp_path, studied(done(Cell("wanda", "LR", "mlp", 0), 1.0)), print)
    assert "Error by block, wanda, mlp only" in shown
    assert (tmp_path / "figures" / "blocks-heldout-wanda-mlp.svg").exists()


def test_each_picture_is_of_the_cells_of_its_own_pruner_and_part(shown: Drawn, tmp_path: Path) -> None:
    parts = {"all": "", "mlp": ", mlp only"}
    places = [Cell(pruner, "LR", only, 0, own) for pruner in ("magnitude", "wanda") for only in parts for own in (0, 8)]
    write_figures(tmp_path, studied(*(done(place, float(scale)) for scale, place in enumerate(places, 1))), print)
    for scale, place in enumerate(places, 1):
        family = f"{place.pruner}+8" if place.self_generate else place.pruner
        (series,), _ = shown[f"Error by block, {family}{parts[place.only]}"]
        assert series == {"LR": [pytest.approx(0.03 * scale), pytest.approx(0.3 * scale)]}
    for first, said in ((1, ""), (3, ", mlp only")):
        (series,), _ = shown[f"Perplexity a % b.txt, by self-generated samples{said}"]
        assert series == {
            f"{pruner} LR": [(0, 30.0 * (first + after)), (8, 30.0 * (first + 1 + after))]
            for pruner, after in (("magnitude", 0), ("wanda", 4))
        }
