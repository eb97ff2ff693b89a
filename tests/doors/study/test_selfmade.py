"""In a study, the number of self-generated samples is an axis like the others; each number has its own samples."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from reprune.doors.records.study import Study
from reprune.doors.report.made import study_made
from reprune.doors.study.record import StudyFolder, read_study
from reprune.doors.study.run import study
from reprune.planning.generation import rounds
from tests.doors.conftest import Cli
from tests.doors.generation.test_generate import reads
from tests.doors.study.runs import ONE, SETTINGS, STUDY, numbers

OWN = ["--set", "self_generate.filters=[duplicates]", "self_generate.batch_size=6"]


@pytest.fixture
def here(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rounds, "language_of", reads)
    return here


def test_numbers_of_self_generated_samples_are_an_axis(here: Path, figures: None, cli: Cli) -> None:
    flags = [*ONE, *STUDY, "--self-generate", "0", "4", "--set", OWN[1], "--set", OWN[2]]
    said = cli("study", "llama", "--out", "s", *flags)
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if len(line) > 80] == []
    assert "1 pruner x 1 rung x 2 self-generated counts = 2 cells\n" in said.out
    assert "2/2 magnitude LR, 4 self-generated, seed 0\n" in said.out
    record = read_study(here / "s")
    assert [each["name"] for each in record["cells"]] == ["magnitude-LR-seed0", "magnitude-LR-self4-seed0"]
    assert {key: [source["name"] for source in data["sources"]] for key, data in record["data"].items()} == {
        "0": ["text.txt"] * 2,
        "0+4": ["text.txt", "self-generated.jsonl"] * 2,
    }
    for each, samples in zip(record["cells"], (6, 10), strict=True):
        made = json.loads((here / "s" / each["folder"] / "reprune.json").read_text())
        drawn = sum(source["count"] for source in made["data"]["sources"] if source["role"] == "calibration")
        assert drawn == samples, "beside those of the text, not in their place"
    page = (here / "s" / "study.md").read_text()
    lines = [line.split(" | ")[:3] for line in page.splitlines() if line.startswith("| magnitude")]
    assert lines[:2] == [["| magnitude", "LR", "0"], ["| magnitude", "LR", "4"]]
    assert "| pruner | rung | self-generated | error |" in page
    drawn_figures = {path.stem for path in (here / "s" / "figures").glob("self-generated-*.svg")}
    assert {"self-generated-perplexity-manual", "self-generated-test-error-manual"} <= drawn_figures
    assert (here / "s" / "figures" / "blocks-heldout-magnitude+4.svg").exists()

    said = cli("study", "llama", "--out", "s", *flags[: len(ONE) + len(STUDY)], "--self-generate", "4", *flags[-4:])
    assert said.code == 0
    assert "1 pruner x 1 rung = 1 cell; 1 done before\n" in said.out


def test_without_the_plain_number_and_without_texts_they_are_all_that_is_calibrated_on(here: Path) -> None:
    settings = {**SETTINGS, "calibration": None, "settings": [*SETTINGS["settings"], *OWN[1:]]}
    grid = {"pruners": ["magnitude"], "rungs": ["LR"]}
    record = study("llama", "s", **grid, self_generate=[8, 9], **settings)  # type: ignore[arg-type]
    assert {key: {source["name"] for source in data["sources"]} for key, data in record["data"].items()} == {
        key: {"self-generated.jsonl"} for key in ("0+8", "0+9")
    }


def test_what_a_report_names_makes_a_study_without_texts_again(here: Path, cli: Cli) -> None:
    settings = {**SETTINGS, "calibration": None, "settings": [*SETTINGS["settings"], *OWN[1:]]}
    record = study("llama", "s", pruners=["magnitude"], rungs=["LR"], self_generate=[8, 9], **settings)
    again, _, written = study_made(Study.model_validate(record)).codes
    (here / "settings.yaml").write_text(written.text)
    command = again.text.replace("\\\n", "").partition("\nreprune report")[0]
    said = cli(*shlex.split(command)[1:])
    assert (said.code, said.err) == (0, "")
    assert numbers(read_study(here / "again")) == numbers(record)


def test_other_texts_of_the_model_are_told_from_a_text_that_has_changed(here: Path, cli: Cli) -> None:
    """As a machine writes that computes otherwise. Once the first texts are back, the cell can be begun anew."""
    flags = [*ONE, *STUDY, "--self-generate", "4", "--set", *OWN[1:]]
    assert cli("study", "llama", "--out", "s", *flags).code == 0
    whole = (here / "s" / "study.json").read_text()
    for place, why in (
        (1, "the model has written other texts, as it may on another machine or with another number of threads. Set "),
        (0, "a calibration text has changed or was replaced. Put the original back, or give another folder. "),
    ):
        record = json.loads(whole)
        record["data"]["0+4"]["sha256"] = record["data"]["0+4"]["sources"][place]["sha256"] = "ab" * 32
        record["cells"][0]["status"] = "pending"
        StudyFolder(here / "s").save(record)
        said = cli("study", "llama", "--out", "s", *flags)
        assert said.code == 1
        assert f"though the settings are the same: {why}" in said.err
        assert "(Remove cells/magnitude-LR-self4-seed0 to begin this cell anew.)" in said.err
        record = read_study(here / "s")
        record["data"] = json.loads(whole)["data"]
        StudyFolder(here / "s").save(record)
        shutil.rmtree(here / "s" / "cells" / "magnitude-LR-self4-seed0")
        assert cli("study", "llama", "--out", "s", *flags).code == 0
