"""A study's tables show its record: means computed by hand, and the same numbers in Markdown, CSV and JSON."""

from __future__ import annotations

import copy
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from reprune.doors.command.views_study import show_study
from reprune.doors.records.rows import rows
from reprune.doors.records.study import Study
from reprune.doors.study.files import comma_separated, markdown, write_tables
from reprune.doors.study.grid import Cell, Grid
from reprune.doors.study.record import CellRecord, StudyRecord, extend, new_cell
from reprune.doors.study.run import seconds_left

TEXTS = ("wikitext2", "a|b.txt")


def done(place: Cell, scale: float) -> CellRecord:
    """A finished cell whose numbers are those of the unit cell, times `scale`."""
    errors = {text: {"normalized": 40.0 * scale, "relative": 0.04 * scale} for text in TEXTS}
    cell = new_cell(place, "0.5")
    cell.update(
        {
            "status": "done",
            "calibration_error": 12.5 * scale,
            "heldout_error": 25.0 * scale,
            "relative_calibration_error": 0.02 * scale,
            "relative_heldout_error": 0.03 * scale,
            "test_error": errors,
            "perplexity": {"wikitext2": 40.0 * scale, "a|b.txt": 80.0 * scale},
            "zero_shot": {
                "boolq": {"accuracy": 0.5 * scale, "standard_error": 0.01, "examples": 3270},
                "rte": {"accuracy": 0.4 * scale, "standard_error": None, "examples": 1},
            },
            "zero_shot_mean": 0.45 * scale,
            "seconds": 100.0 * scale,
            "measuring_seconds": 20.0,
            "peak_memory_bytes": {"host": round(1e9 * scale), "device": 0},
        }
    )
    return cell


@pytest.fixture
def record() -> StudyRecord:
    """Two rows of three seeds, in which one cell failed, one row of one seed, and one of which nothing is done."""
    failed = new_cell(Cell("wanda", "LR", "all", 2), "0.5")
    failed.update({"status": "failed", "error": "window 1: not finite"})
    text: dict[str, Any] = {
        "text_sha256": "ab" * 32,
        "protocol": "short",
        "seqlen": 512,
        "windows": 1200,
        "tokens": 613200,
        "bos": True,
        "begun": True,
        "precision": "float32",
    }
    tasks = {
        "boolq": {"metric": "acc", "accuracy": 0.625, "standard_error": 0.0085, "examples": 3270},
        "rte": {"metric": "acc", "accuracy": 0.5, "standard_error": None, "examples": 1},
    }
    return {
        "kind": "reprune study",
        "format": 1,
        "model": {"name": "toy", "fingerprint": "cd" * 32, "files": {}},
        "versions": {"reprune": "0.2.0", "torch": "2.9"},
        "packages": {},
        "machine": {"system": "Linux x86_64", "threads": 2, "device": "cpu"},
        "settings": {"sparsity": "0.5", "samples": 32, "seqlen": 256, "calibration": ["c4"], "heldout": []},
        "measures": {},
        "data": {},
        "dense": {
            "perplexity": {
                "wikitext2": {**text, "perplexity": 26.914},
                "a|b.txt": {**text, "perplexity": 33.3, "protocol": "custom", "bos": False, "begun": False},
            },
            "zero_shot": {
                "mean": 0.5625,
                "tasks": tasks,
                "data": "hub",
                "precision": "float32",
                "harness": "lm-eval 0.4.12",
            },
        },
        "cells": [
            *(done(Cell("magnitude", "LR", "all", seed), scale) for seed, scale in enumerate((1.0, 1.2, 1.7))),
            *(done(Cell("wanda", "LR", "all", seed), scale) for seed, scale in enumerate((0.5, 0.7))),
            failed,
            done(Cell("wanda", "BR", "all", 0), 0.25),
            new_cell(Cell("wanda", "auto", "all", 0), "0.5"),
        ],
    }


def table(page: str, after: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table after a text, by heading."""
    lines = page[page.index(after) :].split("\n\n")[1].splitlines()
    cut = [[part.strip() for part in line.replace("\\|", "!").strip("|").split("|")] for line in lines]
    assert all(len(line) == len(cut[0]) for line in cut)
    return [dict(zip(cut[0], line, strict=True)) for line in cut[2:]]


def test_rows_are_means_over_seeds_from_the_least_to_the_largest(record: StudyRecord) -> None:
    dense, magnitude, wanda, single, nothing = table(markdown(record), "## Errors")
    assert magnitude == {
        "pruner": "magnitude",
        "rung": "LR",
        "seeds": "3",
        "error": "16.25 (12.5 to 21.25)",  # 12.5 x 1.3
        "calibration %": "2.60 (2.00 to 3.40)",
        "held-out %": "3.90 (3.00 to 5.10)",
        "test % wikitext2": "5.20 (4.00 to 6.80)",
        "test % a!b.txt": "5.20 (4.00 to 6.80)",
        "perplexity wikitext2": "52.00 (40.00 to 68.00)",
        "perplexity a!b.txt": "104.00 (80.00 to 136.00)",
        "zero-shot %": "58.50 (45.00 to 76.50)",
        "time": "2:10 (1:40 to 2:50)",
        "peak memory": "1.70 GB",  # the largest
    }
    assert (wanda["seeds"], wanda["error"], wanda["perplexity wikitext2"]) == (
        *("2 of 3", "7.5 (6.25 to 8.75)", "24.00 (20.00 to 28.00)"),
    )
    assert (single["rung"], single["seeds"], single["error"], single["time"]) == ("BR", "1", "3.125", "25.0 s")
    assert nothing == {**dict.fromkeys(dense, "-"), "pruner": "wanda", "rung": "auto", "seeds": "0 of 1"}
    assert dense == {
        **dict.fromkeys(dense, "-"),
        "pruner": "dense",
        "rung": "",
        "seeds": "",
        "perplexity wikitext2": "26.91",
        "perplexity a!b.txt": "33.30",
        "zero-shot %": "56.25",
    }


def test_tasks_have_a_table_of_their_own_with_their_standard_errors(record: StudyRecord) -> None:
    page = markdown(record)
    dense, magnitude, _, single, _ = table(page, "## Zero-shot")
    assert (dense["boolq"], dense["rte"]) == ("62.50 ± 0.85", "50.00")
    assert (magnitude["boolq"], magnitude["rte"]) == ("65.00 (50.00 to 85.00)", "52.00 (40.00 to 68.00)")
    assert (single["boolq"], single["rte"]) == ("12.50 ± 1.00", "10.00")
    assert "Examples: boolq 3,270, rte 1; lm-eval 0.4.12, rows from hub, products in float32." in page


def test_the_protocol_of_every_text_is_stated(record: StudyRecord) -> None:
    page = markdown(record)
    assert (
        "- wikitext2 (sha256 abababababab): short: 1,200 windows of 512 tokens (BOS + 511), not overlapping, "
        "613,200 tokens predicted, products in float32"
    ) in page
    assert "- a|b.txt (sha256 abababababab): custom: 1,200 windows of 512 tokens (no BOS, 512)" in page
    assert "Sparsity 0.5, calibrated on 32 samples of 256 tokens of c4; seeds 0, 1, 2." in page
    assert "Cells: 6 done, 1 failed, 1 pending." in page
    record["settings"] |= {"sparsity_by_name": {"mlp.*": "0.7"}, "allocation": {"name": "uniform"}}
    assert "Sparsity 0.5, others by name, calibrated on" in markdown(record)
    assert "## Failed\n\n- wanda-LR-seed2: window 1: not finite\n" in page
    assert "reprune 0.2.0, torch 2.9; Linux x86_64, 2 threads, cpu." in page


@pytest.mark.parametrize(
    ("heldout", "said"), [([], "of the same sources"), (["a.txt=4", "c4::validation"], "of a.txt=4, c4::validation")]
)
def test_the_legend_says_what_held_out_samples_are_of(record: StudyRecord, heldout: list[str], said: str) -> None:
    record["settings"]["heldout"] = heldout
    assert f"on the calibration samples, on held-out samples {said}, and on each test text." in markdown(record)


@pytest.mark.parametrize(
    ("calibration", "own", "said"),
    [
        (["a.txt=4"], [0], "calibrated on 4 samples of 256 tokens of a.txt=4; seeds"),
        (["a.txt=4", "c4"], [0], "calibrated on 36 samples of 256 tokens of a.txt=4, c4; seeds"),
        (["c4"], [0, 8], "of 256 tokens of c4, and on 0 or 8 that the model writes itself; seeds"),
        ([], [4, 8], "calibrated on 4 or 8 samples of 256 tokens that the model writes itself; seeds"),
    ],
)
def test_the_samples_are_counted_as_they_are_drawn(
    record: StudyRecord, calibration: list[str], own: list[int], said: str
) -> None:
    record["settings"]["calibration"] = calibration
    for number, cell in enumerate(record["cells"]):
        cell["self_generate"] = own[number % len(own)]
    assert said in markdown(record)


def test_what_time_and_memory_are_of_is_said(record: StudyRecord) -> None:
    shared = "is computed by the first of them each time the study is started, and counted in its time; on a cluster, "
    own = " The peak memory of a cell for which the model wrote texts includes that."
    assert f"{shared}every cell computes its own.\n" in markdown(record)
    record["cells"][0]["self_generate"] = 8
    assert f"{shared}every cell computes its own.{own}\n" in markdown(record)


def test_the_commit_of_a_hub_model_is_said(record: StudyRecord) -> None:
    assert f"cpu. Model fingerprint {6 * 'cd'}. All" in markdown(record)
    record["model"]["commit"] = 5 * "01234567"
    assert f"cpu. Model commit {5 * '01234567'}, fingerprint {6 * 'cd'}. All" in markdown(record)


def test_seeds_and_parts_have_a_column_where_there_are_several(record: StudyRecord) -> None:
    record["cells"] = [done(Cell("wanda", "LR", "all", 0), 1.0)]
    page = markdown(record)
    assert "seeds" not in table(page, "## Errors")[0]
    assert "part" not in table(page, "## Errors")[0]
    assert "Attention" not in page
    record["cells"].append(done(Cell("wanda", "LR", "attention", 0), 0.5))
    page = markdown(record)
    assert [row["part"] for row in table(page, "## Errors")] == ["", "all", "attention"]
    first, second = table(page, "Perplexity on wikitext2:")
    assert first == {"pruner": "dense", "rung": "", "attention": "26.91", "all": "26.91"}
    assert second == {"pruner": "wanda", "rung": "LR", "attention": "20.00", "all": "40.00"}
    assert list(first) == ["pruner", "rung", "attention", "all"], "as in the paper's Table 7"


def test_seeds_are_counted_where_all_but_one_of_several_are_still_to_come(record: StudyRecord) -> None:
    record["cells"] = [done(Cell("wanda", "LR", "all", 0), 1.0), new_cell(Cell("wanda", "LR", "all", 1), "0.5")]
    assert table(markdown(record), "## Errors")[1]["seeds"] == "1 of 2"


def test_rows_come_by_part_and_then_by_the_number_of_self_generated_samples(record: StudyRecord) -> None:
    places = [("mlp", 0), ("all", 8), ("mlp", 8), ("all", 0), ("attention", 8)]
    record["cells"] = [new_cell(Cell("wanda", "LR", only, 0, own), "0.5") for only, own in places]
    found = [(row["part"], row["self-generated"]) for row in table(markdown(record), "## Errors")[1:]]
    assert found == [("all", "0"), ("all", "8"), ("attention", "8"), ("mlp", "0"), ("mlp", "8")]


def test_rungs_go_as_the_ladder_does_where_one_seed_was_begun_with_fewer(record: StudyRecord) -> None:
    record["cells"] = []
    extend(record, Grid.of(["wanda"], ["BR"], ["all"], [0]).cells(), "0.5")
    extend(record, Grid.of(["wanda"], ["LR", "BR"], ["all"], [1]).cells(), "0.5")
    assert [(row.rung, row.asked) for row in rows(Study.model_validate(record))] == [("LR", 1), ("BR", 2)]


def test_a_number_of_self_generated_samples_is_shown_that_all_have(record: StudyRecord) -> None:
    record["cells"] = [new_cell(Cell("wanda", rung, "all", 0, 8), "0.5") for rung in ("LR", "BR")]
    assert [row["self-generated"] for row in table(markdown(record), "## Errors")] == ["", "8", "8"]


def test_a_devices_memory_is_shown_where_one_was_used(record: StudyRecord) -> None:
    assert "on the device" not in markdown(record)
    for cell in record["cells"][:3]:
        cell["peak_memory_bytes"] = {"host": 10**9, "device": 2 * 10**9 + cell["seed"] * 10**9}
    assert [row["on the device"] for row in table(markdown(record), "## Errors")] == [
        *("-", "4.00 GB", "0 kB", "0 kB", "-")
    ]


def test_the_three_forms_agree(record: StudyRecord, tmp_path: Path) -> None:
    """Every number of a cell is the same in the CSV and the JSON; those of the Markdown are their means."""
    write_tables(tmp_path, record)
    cells = json.loads(json.dumps(record))["cells"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "study.csv").read_text())))
    assert [row["name"] for row in rows] == [cell["name"] for cell in cells]
    for row, cell in zip(rows, cells, strict=True):
        for key in ("calibration_error", "heldout_error", "relative_calibration_error", "relative_heldout_error"):
            assert row[key] == ("" if cell[key] is None else repr(cell[key]))
        for text in TEXTS:
            assert row[f"perplexity:{text}"] == repr(cell["perplexity"].get(text, "")).strip("'")
            errors = cell["test_error"].get(text, {"normalized": "", "relative": ""})
            assert row[f"test_error:{text}"] == repr(errors["normalized"]).strip("'")
            assert row[f"relative_test_error:{text}"] == repr(errors["relative"]).strip("'")
        for task in ("boolq", "rte"):
            score = cell["zero_shot"].get(task, {"accuracy": "", "standard_error": ""})
            assert row[f"zero_shot:{task}"] == repr(score["accuracy"]).strip("'")
            assert row[f"zero_shot_standard_error:{task}"] == str(score["standard_error"] or "")
        assert (row["status"], row["error"]) == (cell["status"], cell["error"] or "")
        for key in ("seconds", "measuring_seconds", "zero_shot_mean"):
            assert row[key] == ("" if cell[key] is None else repr(cell[key]))
        for where in ("host", "device"):
            assert row[f"peak_memory_bytes:{where}"] == str((cell["peak_memory_bytes"] or {}).get(where, ""))
    page = (tmp_path / "study.md").read_text()
    assert page == markdown(record)
    for row in table(page, "## Errors")[1:]:
        names = row["pruner"], row["rung"], "done"
        these = [cell for cell in rows if (cell["pruner"], cell["rung"], cell["status"]) == names]
        if these:
            mean = sum(float(cell["perplexity:wikitext2"]) for cell in these) / len(these)
            assert row["perplexity wikitext2"].split(" ")[0] == f"{mean:.2f}"
            assert row["seeds"].startswith(str(len(these)))


def test_one_line_a_cell_in_the_csv(record: StudyRecord) -> None:
    lines = comma_separated(record).splitlines()
    assert len(lines) == 1 + 8
    assert lines[0].startswith("name,pruner,sparsity,rung,only,self_generate,seed,status,error,calibration_error,")
    assert lines[6].startswith("wanda-LR-seed2,wanda,0.5,LR,all,0,2,failed,window 1: not finite,,,,,")


def test_the_tables_at_the_end_fit_a_narrow_terminal(
    record: StudyRecord, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_study(record, Path("s"))
    said = capfd.readouterr().out
    assert [line for line in said.splitlines() if len(line) > 80] == []
    assert " 16.25 " in said
    assert " 52.00 " in said
    assert " 58.50 " in said
    assert " 62.50 " in said
    assert not {"(", "±"} & set(said.split("means over")[0]), "no spreads"


@pytest.mark.parametrize("columns", [None, "80", "60"])
def test_no_heading_and_no_number_is_cut(
    columns: str | None, record: StudyRecord, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    name = "c4-validation-sample.jsonl"
    record["dense"]["perplexity"][name] = record["dense"]["perplexity"]["wikitext2"]
    for cell in record["cells"]:
        if cell["status"] == "done":
            cell["test_error"][name] = cell["test_error"]["wikitext2"]
            cell["perplexity"][name] = 4102912.4
    show_study(record, Path("s"))
    lines = capfd.readouterr().out.splitlines()
    assert sum(name in line for line in lines) == 2
    assert sum("4102912.40" in line for line in lines) == 3
    assert not [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line]
    assert sum(line.startswith("pruner") for line in lines) == {None: 3, "80": 5, "60": 6}[columns]
    tables = [line for line in lines if not line.startswith(("means", "time", "tables"))]
    assert columns is None or max(map(len, tables)) <= int(columns)


def test_what_is_left_takes_as_long_as_what_is_done_of_the_same_rung(record: StudyRecord) -> None:
    cells = record["cells"]
    lr = [120.0, 140.0, 190.0, 70.0, 90.0]  # the cells' seconds, and 20 of measuring
    assert seconds_left(record, []) == 0
    assert seconds_left(record, [cells[5]]) == pytest.approx(sum(lr) / 5)
    assert seconds_left(record, [cells[5], cells[6]]) == pytest.approx(sum(lr) / 5 + 45)
    assert seconds_left(record, [cells[7]]) == pytest.approx((sum(lr) + 45) / 6), "of an unknown rung: as all do"
    assert seconds_left(record, [cells[5], cells[6]], at_once=2) == pytest.approx((sum(lr) / 5 + 45) / 2)
    assert seconds_left(record, [cells[6]], at_once=8) == pytest.approx(45), "no cell is shared out"
    nothing = copy.deepcopy(record)
    for cell in nothing["cells"]:
        cell["status"] = "failed"
    assert seconds_left(nothing, [cells[5]]) is None
