"""The commands in a report make the same again: with the flags that were given, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from reprune.doors.records.run import Run
from reprune.doors.records.study import Study
from reprune.doors.report.made import run_made, study_made
from tests.doors.report.records import MODEL, cell, distilled, fitted, run_record, study_record


def command(cells: list[Any], **measures: Any) -> list[str]:
    """The lines of a study's command."""
    record = study_record(cells)
    record["measures"] |= measures
    return study_made(Study.model_validate(record)).codes[0].text.splitlines()


def test_a_studys_command_has_the_axes_and_measures_that_were_given() -> None:
    lines = command([cell("wanda", rung, seed=seed) for seed in (0, 1) for rung in ("LR", "BR")], seqlen=256, windows=4)
    assert [line.strip(" \\") for line in lines] == [
        "reprune study gemma-3-270m",
        "--recipe settings.yaml",
        "--pruners wanda",
        "--rungs LR BR",
        "--seeds 0 1",
        "--text test.txt",
        "--protocol short",
        "--text-seqlen 256",
        "--windows 4",
        "--out again",
        "reprune report again",
    ]
    said = " ".join(command([cell("wanda", "LR", only="mlp", self_generate=own) for own in (0, 8)]))
    assert "--only mlp" in said and "--self-generate 0 8" in said


def test_a_study_gives_the_settings_that_its_command_names_and_a_cells_own() -> None:
    record = study_record([cell("wanda", "LR"), cell("wanda", "BR")])
    _, one, settings = study_made(Study.model_validate(record)).codes
    assert "--recipe cells/wanda-LR-seed0/recipe.yaml" in one.text
    assert yaml.safe_load(settings.text) == record["settings"]


def test_a_cells_recipe_is_named_only_if_it_is_there() -> None:
    """A cell that has failed may have none."""
    failed, done = cell("magnitude", "LR", status="failed"), cell("wanda", "LR")
    for cells, named in (([failed, done], ["cells/wanda-LR-seed0/recipe.yaml"]), ([failed], [])):
        _, *one, _ = study_made(Study.model_validate(study_record(cells))).codes
        assert [code.text.partition("--recipe ")[2].split()[0] for code in one] == named


def test_a_run_is_made_again_by_as_many_processes_as_ended_it() -> None:
    alone = [{**fitted(0), "exchange": None}]
    made = run_made(Run.model_validate(run_record(1, windows=alone, ranks=2)))
    assert made.codes[0].text.startswith("torchrun --nproc-per-node 2 -m reprune prune tiny-llama")


def test_a_run_that_went_on_elsewhere_names_all_machines() -> None:
    other = {"system": "Linux x86_64", "threads": 8, "device": "cpu"}
    windows = [fitted(0) | {"machine": other}, fitted(1) | {"machine": other}, fitted(2)]
    for step, what in ((None, "window"), (distilled(0.05), "step")):
        made = run_made(Run.model_validate(run_record(1, windows=windows, distillation=step)))
        assert dict(made.pairs)["Machine"] == (
            f"2 {what}s on system Linux x86_64, threads 8, device cpu; {'1 window' if step is None else '2 steps'} on "
            "system Linux x86_64, threads 2, device cpu: do not compare their times"
        )


def test_a_hub_model_is_that_of_its_commit_again() -> None:
    commit = "0123456789" * 4
    for name in ("owner/tiny", "owner/tiny@main", f"owner/tiny@{commit}"):
        model = {"name": name, "commit": commit, **MODEL}
        run = run_made(Run.model_validate(run_record(1, model=model)))
        study = study_made(Study.model_validate(study_record([cell("wanda", "LR")]) | {"model": model}))
        again = [code.text.splitlines()[0].strip(" \\") for code in (run.codes[0], *study.codes[:2])]
        assert again == [f"reprune {door} owner/tiny@{commit}" for door in ("prune", "study", "prune")]
        assert run.pairs[:2] == study.pairs[:2] == [("Dense model", name), ("Commit", commit)]


@pytest.mark.parametrize(("windows", "said"), [(1, "1 window of 512 tokens"), (1200, "1,200 windows of 512 tokens")])
def test_a_text_is_told_with_the_windows_that_were_measured(windows: int, said: str) -> None:
    record = study_record()
    record["dense"]["perplexity"]["test.txt"]["windows"] = windows
    assert said in str(study_made(Study.model_validate(record)).pairs)


def test_the_texts_that_samples_are_of_are_told_with_whose_they_are() -> None:
    record = study_record()
    record["data"]["0+32"] = record["data"]["0"]
    (of_study,) = study_made(Study.model_validate(record)).tables
    (of_run,) = run_made(Run.model_validate(run_record(1))).tables
    assert [row[0] for row in of_study.rows] == ["0", "0 with 32 self-generated"]
    assert of_study.columns == ["seed", *of_run.columns]
    assert [row[1] for row in of_run.rows] == ["calibration", "held-out"]
