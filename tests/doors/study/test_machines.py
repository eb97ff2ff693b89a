"""A study's record and its pages say which machine pruned each cell, wherever the study went on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reprune.doors.records.study import Study
from reprune.doors.report.study import study_page
from reprune.doors.study.record import StudyFolder, read_study
from reprune.doors.study.run import study
from reprune.doors.study.watcher import StudyWatcher
from tests.doors.study.runs import SETTINGS


def test_a_cell_has_the_machine_that_pruned_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    watcher = StudyWatcher()
    watcher.note = notes.append  # type: ignore[method-assign]
    for threads, seeds in ((3, [0]), (5, [1, 2])):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        record = study("llama", "s", pruners=["magnitude"], rungs=["LR"], seeds=seeds, **SETTINGS, watcher=watcher)
    assert "the study was begun on another machine (threads 3, now 5): do not compare times" in notes
    assert record["machine"]["threads"] == 3
    assert [cell["machine"]["threads"] for cell in record["cells"]] == [3, 5, 5]
    for cell in record["cells"]:
        made = json.loads((here / "s" / cell["folder"] / "reprune.json").read_text())
        assert made["machine"] == cell["machine"]
    system = record["machine"]["system"]
    assert (
        f"; 1 cell on {system}, 3 threads, cpu; 2 cells on {system}, 5 threads, cpu (do not compare their times). "
        in (here / "s" / "study.md").read_text()
    )
    (said,) = [text for name, text in study_page(Study.model_validate(record)).sections[-1].pairs if name == "Machine"]
    assert said == (
        f"1 cell on system {system}, threads 3, device cpu; 2 cells on system {system}, threads 5, device cpu: do not "
        "compare their times"
    )


def test_a_study_that_is_older_than_this_goes_on(here: Path) -> None:
    record = study("llama", "s", pruners=["magnitude"], rungs=["LR"], **SETTINGS)
    assert Study.model_validate(record).machines == [(record["machine"], 1)]
    del record["cells"][0]["machine"]
    StudyFolder(here / "s").save(record)
    assert Study.model_validate(record).machines == [(record["machine"], 1)]
    study("llama", "s", pruners=["magnitude"], rungs=["LR"], **SETTINGS)
    assert read_study(here / "s")["cells"][0]["machine"] is None
