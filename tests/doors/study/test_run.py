"""A study runs its grid, measures each cell as the single commands would, and leaves only records and tables."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from reprune.doors.command.arguments import separate_sources
from reprune.doors.evaluation.against import errors_against
from reprune.doors.evaluation.evaluate import evaluate
from reprune.doors.formats import clock, percent
from reprune.doors.records.study import Cell, CellBlock, Study
from reprune.doors.study import cell as study_cell
from reprune.doors.study import figures as study_figures
from reprune.doors.study.cell import CellTask, Outcome
from reprune.doors.study.hands import InTurn
from reprune.doors.study.measures import Bench
from reprune.doors.study.record import StudyFolder, read_study
from reprune.doors.study.run import study
from reprune.doors.study.watcher import StudyWatcher
from reprune.errors import InputError
from tests.doors.conftest import QUICK, Cli
from tests.doors.study.runs import GRID, ONE, SETTINGS, STUDY, TEXTS, cell, copy_of, studied

_HEX = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="session")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the whole small grid; tests must not change it."""
    return studied(llama, tmp_path_factory.mktemp("finished"), pruners=["magnitude", "wanda"], rungs=["LR", "BR+GP"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("study M --pruners a b --rungs c", "study M --pruners a --pruners b --rungs c"),
        ("study --seeds 0 1 --keep-models M", "study --seeds 0 --seeds 1 --keep-models M"),
        ("study --only mlp all M", "study --only mlp --only all M"),
        ("study M --text a b --zero-shot x y", "study M --text a --text b --zero-shot x --zero-shot y"),
        ("study M --calibration a b", "study M --calibration a --calibration b"),
        ("evaluate M --text a b", "evaluate M --text a b"),
        ("prune M --only a b", "prune M --only a b"),
    ],
)
def test_a_flag_is_repeated_before_each_of_its_values(given: str, expected: str) -> None:
    assert separate_sources(given.split()) == expected.split()


def test_a_study_prunes_and_measures_every_cell_of_its_grid(here: Path, cli: Cli) -> None:
    said = cli("study", "llama", "--out", "s", *GRID, *STUDY)
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if len(line) > 80] == []
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f]*", said.out), "neither colours nor a line drawn over"
    assert said.out.startswith("study of llama: 2 pruners x 2 rungs = 4 cells\n")
    note = r"note: (?:test\.txt|manual) holds \d+% of what this model was calibrated on,\n      so on other text .*\n"
    notes = re.findall(note, said.out)
    assert len({*notes}) == len(notes) == said.out.count("note:"), "once of each text, not of each cell"
    shown = re.sub(note, "", said.out)
    headings = re.findall(r"^(\d/\d) (\w+) (\S+), seed 0\n +(?:[\d.]+ % +){3}[\d.]+ +", shown, re.MULTILINE)
    assert headings == [
        ("1/4", "magnitude", "LR"),
        ("2/4", "magnitude", "BR+GP"),
        ("3/4", "wanda", "LR"),
        ("4/4", "wanda", "BR+GP"),
    ]
    assert "1/3" not in said.out, "no windows"
    assert len(re.findall(r"^(?:magnitude|wanda) +(?:LR|BR\+GP) ", said.out, re.MULTILINE)) == 8, "in both tables"
    assert "tables   s/study.md, s/study.csv, s/study.json\n" in said.out

    record = read_study(here / "s")
    lines = re.findall(r"seed 0\n +([\d.]+ %) +([\d.]+ %) +([\d.]+ %) +([\d.]+) +(\S+(?: s)?) ", shown)
    assert lines == [
        (
            *map(percent, (each["relative_calibration_error"], each["relative_heldout_error"])),
            percent(each["test_error"]["test.txt"]["relative"]),
            f"{each['perplexity']['test.txt']:.2f}",
            clock(each["seconds"] + each["measuring_seconds"]),
        )
        for each in record["cells"]
    ]
    dense, *_ = re.findall(r"^dense +([\d.]+) +\S+(?: s)? *$", shown, re.MULTILINE)
    assert dense == f"{record['dense']['perplexity']['test.txt']['perplexity']:.2f}"
    assert record.keys() == Study.model_fields.keys()
    assert (record["kind"], record["format"], record["model"]["name"]) == ("reprune study", 1, "llama")
    assert _HEX.fullmatch(record["model"]["fingerprint"])
    assert record["settings"]["samples"] == 6
    assert record["settings"]["solver"]["epochs"] == 2
    assert record["settings"]["solver"]["loss"] is None  # the rung decides
    assert record["settings"]["device"] == "cpu"
    assert list(record["dense"]["perplexity"]) == ["test.txt", "manual"]
    assert record["dense"]["perplexity"]["manual"]["windows"] == 4
    assert record["dense"]["zero_shot"] is None
    assert [each["name"] for each in record["cells"]] == [
        *("magnitude-LR-seed0", "magnitude-BR+GP-seed0", "wanda-LR-seed0", "wanda-BR+GP-seed0")
    ]
    for each in record["cells"]:
        folder = here / "s" / each["folder"]
        assert {path.name for path in folder.iterdir()} == {"reprune.json", "recipe.yaml"}, "no weights are left"
        made = json.loads((folder / "reprune.json").read_text())
        assert each.keys() == Cell.model_fields.keys()
        assert {key for block in each["blocks"] for key in block} == CellBlock.model_fields.keys()
        assert (each["status"], each["error"], each["only"], each["sparsity"]) == ("done", None, "all", "0.5")
        assert (made["recipe"]["pruner"]["name"], made["recipe"]["reconstruct"]) == (each["pruner"], each["rung"])
        assert made["data"]["sha256"] == record["data"]["0"]["sha256"]
        for key in ("calibration_error", "heldout_error", "relative_calibration_error", "relative_heldout_error"):
            assert each[key] == made["blocks"][-1][key] > 0
            assert [block[key] for block in each["blocks"]] == [block[key] for block in made["blocks"]]
        assert [block["index"] for block in each["blocks"]] == [0, 1, 2]
        for text in ("test.txt", "manual"):
            assert each["test_error"][text] == each["blocks"][-1]["test_error"][text]
            assert each["test_error"][text]["relative"] > 0
        for key in ("windows", "seconds", "peak_memory_bytes"):
            assert each[key] == made[key]
    assert {path.name for path in (here / "s").iterdir()} == {*("study.json", "study.md", "study.csv", "cells")}


def test_what_auto_is_here_it_is_for_all_cells(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's node, or another machine on which a study goes on, may settle it differently."""
    seen: list[tuple[str, str]] = []

    def look(_: InTurn, tasks: Sequence[CellTask]) -> Iterator[tuple[CellTask, Outcome]]:
        seen.extend((task.recipe.device, task.recipe.precision) for task in tasks)
        return iter(())

    monkeypatch.setattr(InTurn, "do", look)
    settings = {**SETTINGS, "device": "auto", "settings": ["precision=auto"]}
    record = study("llama", "s", pruners=["magnitude"], rungs=["LR", "BR"], **settings)
    here_is = record["settings"]["device"], record["settings"]["precision"]
    assert "auto" not in here_is
    assert seen == [here_is] * 2


def test_the_same_sparsities_and_rates_may_be_written_in_another_way(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InTurn, "do", lambda *_: iter(()))
    for rung, half, less, rate in (
        ("LR", "0.5", "0.3", "1%"),
        ("BR", "50%", "30%", "1.0%"),
        ("BR+GP", ".50", "0.30", "1 %"),
    ):
        settings = ["precision=float32", f'sparsity_by_name={{"down_proj": "{less}"}}', f"distill.lr={rate}"]
        given = {**SETTINGS, "sparsity": half, "lr": rate, "settings": settings}
        record = study("llama", "s", pruners=["magnitude"], rungs=[rung], **given)
        assert record["settings"]["sparsity"] == "0.5"
        assert record["settings"]["sparsity_by_name"] == {"down_proj": "0.3"}
        assert record["settings"]["solver"]["lr"] == record["settings"]["distill"]["lr"] == "1%"
    assert [cell["sparsity"] for cell in record["cells"]] == ["0.5"] * 3


def test_a_cell_is_what_the_single_commands_make(here: Path, cli: Cli, finished: Path) -> None:
    """Pruning, evaluating and comparing by single commands gives the same numbers to the last digit."""
    assert cli("prune", "llama", "--out", "one", "--pruner", "wanda", "--reconstruct", "BR+GP", *QUICK).code == 0
    mine = cell(finished, "wanda-BR+GP-seed0")
    made = json.loads((here / "one" / "reprune.json").read_text())
    assert mine["heldout_error"] == made["blocks"][-1]["heldout_error"]
    protocol: dict[str, Any] = {"seqlen": 32, "max_windows": 4, "device": "cpu", "precision": "float32"}
    for text, name in (("test.txt", "test.txt"), ("manual", "manual")):
        assert mine["perplexity"][name] == evaluate("one", text, **protocol).perplexity
        found = errors_against("one", "llama", text, **protocol)
        assert mine["test_error"][name] == {
            "normalized": found.blocks[-1].normalized,
            "relative": found.blocks[-1].relative,
        }
    dense = read_study(finished)["dense"]["perplexity"]["manual"]
    assert dense["perplexity"] == evaluate("llama", "manual", **protocol).perplexity


def test_the_recipe_that_stays_makes_a_cell_again(here: Path, cli: Cli, finished: Path) -> None:
    recipe = finished / "cells" / "magnitude-BR+GP-seed0" / "recipe.yaml"
    assert cli("prune", "llama", "--out", "again", "--recipe", recipe).code == 0
    again = json.loads((here / "again" / "reprune.json").read_text())
    assert again["blocks"][-1]["heldout_error"] == cell(finished, "magnitude-BR+GP-seed0")["heldout_error"]


def test_models_are_kept_on_demand_and_load(here: Path, cli: Cli) -> None:
    flags = [*ONE, *STUDY, "--keep-models", "-q"]
    said = cli("study", "llama", "--out", "s", *flags)
    assert (said.code, said.out, said.err) == (0, "", ""), "quiet prints nothing"
    kept = here / "s" / "cells" / "magnitude-LR-seed0"
    found = evaluate(kept, "manual", seqlen=32, max_windows=4, device="cpu", precision="float32")
    assert found.perplexity == cell(here / "s", "magnitude-LR-seed0")["perplexity"]["manual"]
    assert cli("study", "llama", "--out", "s", *flags[:-2]).code == 0
    assert list(kept.glob("*.safetensors")), "a study that goes on does not remove what was kept"
    record = read_study(here / "s")
    record["cells"][0]["status"] = "pending"
    StudyFolder(here / "s").save(record)
    (kept / ".reprune" / "streams").mkdir(parents=True)
    assert cli("study", "llama", "--out", "s", *flags).code == 0
    assert not (kept / ".reprune").exists(), "left where a run was killed while it removed it"


def test_verbose_shows_every_window(here: Path, cli: Cli) -> None:
    said = cli("study", "llama", "--out", "s", *ONE, *STUDY, "-v")
    assert re.findall(r"^ +(\d/3)  \d ", said.out, re.MULTILINE) == ["1/3", "2/3", "3/3"]
    assert [line for line in said.out.splitlines() if len(line) > 80] == []


def test_the_dense_model_is_measured_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    whole = Bench.perplexity

    def counted(self: Bench, model: str | Path, *rest: Any) -> Any:
        measured.append(str(model))
        return whole(self, model, *rest)

    monkeypatch.setattr(Bench, "perplexity", counted)
    for seeds in ([0], [0, 1]):
        twice = {**SETTINGS, "texts": [*SETTINGS["texts"], "manual"]}
        study("llama", "s", pruners=["magnitude"], rungs=["LR"], seeds=seeds, **twice)
    assert measured.count("llama") == 2, "once on each of two texts, though one is given twice"
    assert len(measured) == 2 + 2 * 2


def test_only_a_part_of_each_block_is_pruned(here: Path, cli: Cli) -> None:
    flags = [*ONE, "--only", "all", "attention", "mlp", *STUDY]
    said = cli("study", "llama", "--out", "s", *flags)
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if len(line) > 80] == []
    assert "1 pruner x 1 rung x 3 parts = 3 cells\n" in said.out
    assert "magnitude LR, attention only, seed 0\n" in said.out
    record = read_study(here / "s")
    assert [each["name"] for each in record["cells"]] == [
        *("magnitude-LR-seed0", "magnitude-LR-attention-seed0", "magnitude-LR-mlp-seed0")
    ]
    pruned = [
        {matrix["name"].split(".")[0] for matrix in made["blocks"][0]["matrices"]}
        for each in record["cells"]
        for made in [json.loads((here / "s" / each["folder"] / "reprune.json").read_text())]
    ]
    assert pruned == [{"self_attn", "mlp"}, {"self_attn"}, {"mlp"}]
    page = (here / "s" / "study.md").read_text()
    cells = {each["only"]: f"{each['perplexity']['manual']:.2f}" for each in record["cells"]}
    table = page[page.index("Perplexity on manual:") :]
    assert "| pruner | rung | attention | mlp | all |" in table
    assert f"| magnitude | LR | {cells['attention']} | {cells['mlp']} | {cells['all']} |" in table


def test_linears_are_left_dense_by_name_in_all_cells(here: Path, cli: Cli) -> None:
    flags = ["--include", "mlp.*", "--exclude", "up_proj", "down_proj"]
    assert cli("study", "llama", "--out", "s", *ONE, *STUDY, *flags).code == 0
    record = json.loads((here / "s" / "cells" / "magnitude-LR-seed0" / "reprune.json").read_text())
    assert {matrix["name"] for block in record["blocks"] for matrix in block["matrices"]} == {"mlp.gate_proj"}
    assert read_study(here / "s")["settings"]["exclude"] == ["up_proj", "down_proj"]


def test_a_recipe_file_gives_what_is_common_and_the_values_of_axes_that_are_not_given(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "mine.yaml").write_text("{samples: 5, only: mlp, seed: 3, solver: {epochs: 1}}")
    flags = ["--recipe", "mine.yaml", *GRID[:3], "--rungs", "LR", *STUDY[:2], *STUDY[4:]]
    said = cli("study", "llama", "--out", "s", *flags)
    assert (said.code, said.err) == (0, "")
    record = read_study(here / "s")
    assert {each["name"] for each in record["cells"]} == {"magnitude-LR-mlp-seed3", "wanda-LR-mlp-seed3"}
    assert record["settings"]["samples"] == 5
    monkeypatch.setattr(InTurn, "do", lambda *_: iter(()))
    (own,) = study("llama", "o", pruners="wanda", rungs="LR", recipe={"self_generate": 8}, **SETTINGS)["cells"]
    assert own["name"] == "wanda-LR-self8-seed0"


def test_the_record_tells_nothing_of_the_machine_that_it_was_made_on(here: Path, cli: Cli) -> None:
    (here / "jane-doe").mkdir()
    for name in ("text.txt", "test.txt"):
        (here / name).rename(here / "jane-doe" / name)
    private = here / "jane-doe"
    flags = ["--calibration", str(private / "text.txt"), *STUDY[2:14], "--text", str(private / "test.txt")]
    said = cli("study", here / "llama", "--out", here / "s", *GRID[:2], "--rungs", "LR", *flags)
    assert said.code == 0
    for path in (here / "s").rglob("*"):
        if path.suffix in (".json", ".md", ".csv", ".svg"):
            assert "jane-doe" not in path.read_text()
            assert str(here) not in path.read_text()


def test_a_text_that_is_calibrated_on_is_pointed_out(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [*ONE[:3], "BR+GP", *QUICK, *TEXTS[3:]]
    said = cli("study", "llama", "--out", "s", *flags, "--text", "text.txt")
    assert said.code == 0
    assert "note: text.txt is a calibration text too" in said.out
    assert "note:" not in cli("study", "llama", "--out", "t", *flags, "--text", "test.txt").out
    monkeypatch.setattr(InTurn, "do", lambda *_: iter(()))
    held_out = ["--text", "test.txt", "--heldout", "test.txt"]
    assert "note: test.txt is a calibration text too" in cli("study", "llama", "--out", "u", *flags, *held_out).out


def test_without_figures_a_study_is_whole_and_says_so(
    here: Path, figures: None, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(record: Any) -> Any:
        raise InputError("figures need matplotlib; install it with: pip install 'reprune[report]'")
        yield

    with monkeypatch.context() as without:
        without.setattr(study_figures, "_figures", missing)
        said = cli("study", "llama", "--out", "s", *ONE, *STUDY)
    assert said.code == 0
    assert "note: no figures are drawn: figures need matplotlib; install it" in said.out
    assert not (here / "s" / "figures").exists()
    assert "## Figures" not in (here / "s" / "study.md").read_text()
    assert cli("study", "llama", "--out", "s", *ONE, *STUDY).code == 0
    assert {path.name for path in (here / "s" / "figures").iterdir()} == {
        *("blocks-calibration-magnitude.svg", "blocks-heldout-magnitude.svg", "calibration-heldout.svg"),
        *("blocks-test-manual-magnitude.svg", "blocks-test-test.txt-magnitude.svg"),
        *("calibration-test-manual.svg", "calibration-test-test.txt.svg"),
    }
    assert "](figures/blocks-heldout-magnitude.svg)" in (here / "s" / "study.md").read_text()


def test_zero_shot_accuracy_is_measured_of_every_model_where_tasks_are_given(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the harness, which is an optional dependency."""
    asked: list[str] = []

    def zero_shot(self: Bench, model: str | Path, *rest: Any) -> dict[str, Any]:
        asked.append(str(model))
        accuracy = 0.75 if model == "llama" else 0.5
        score = {"metric": "acc", "accuracy": accuracy, "standard_error": 0.125, "examples": 8, "sha256": "ab" * 32}
        tasks = {task: dict(score) for task in self.measures.zero_shot}
        return {"model": "m", "precision": "float32", "data": "rows", "mean": accuracy, "tasks": tasks}

    monkeypatch.setattr("reprune.doors.study.measures.check_tasks", lambda *_, **__: None)
    monkeypatch.setattr(Bench, "tasks", lambda self, notify: {"boolq": "ab" * 32, "rte": "cd" * 32})
    monkeypatch.setattr(Bench, "zero_shot", zero_shot)
    ticks = itertools.count()
    monkeypatch.setattr(study_cell, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    flags = [*ONE, *STUDY, "--zero-shot", "paper", "--zero-shot-data", "a/rows", "--zero-shot-limit", "8"]
    with monkeypatch.context() as patch:
        patch.setattr(study_cell, "prune_by_recipe", Mock(side_effect=KeyboardInterrupt))
        assert cli("study", "llama", "--out", "s", *flags).code == 1
    said = cli("study", "llama", "--out", "s", *flags)
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if len(line) > 80] == []
    record = read_study(here / "s")
    assert record["measures"]["zero_shot"] == {"boolq": "ab" * 32, "rte": "cd" * 32}
    assert (record["measures"]["zero_shot_limit"], record["measures"]["zero_shot_data"]) == (8, "rows")
    assert record["dense"]["zero_shot"]["mean"] == 0.75
    assert record["cells"][0]["zero_shot"] == {
        task: {"accuracy": 0.5, "standard_error": 0.125, "examples": 8} for task in ("boolq", "rte")
    }
    assert record["cells"][0]["zero_shot_mean"] == 0.5
    assert record["cells"][0]["measuring_seconds"] == 5.0, "of two texts twice, and of zero-shot accuracy"
    page = (here / "s" / "study.md").read_text()
    assert "| dense |  | 75.00 ± 12.50 | 75.00 ± 12.50 |\n| magnitude | LR | 50.00 ± 12.50 | 50.00 ± 12.50 |" in page
    assert cli("study", "llama", "--out", "s", *flags).code == 0
    assert asked == ["llama", "s/cells/magnitude-LR-seed0"], "nothing is asked twice, whatever comes between"
    monkeypatch.setattr(Bench, "tasks", lambda self, notify: {"boolq": "ef" * 32, "rte": "cd" * 32})
    refused = cli("study", "llama", "--out", "s", *flags)
    assert refused.code == 2
    assert "measure zero_shot.boolq abababababab, now efefefefefef" in refused.err


def test_who_watches_a_study_hears_the_notes_of_its_runs(here: Path) -> None:
    notes: list[str] = []

    class Notes(StudyWatcher):
        def note(self, text: str) -> None:
            notes.append(text)

    tight = ["precision=float32", "pruner.damping=1e-12"]  # too little for the Gram matrix of so few tokens
    settings = {**SETTINGS, "samples": 1, "seqlen": 4, "settings": tight}
    study("llama", "s", pruners=["sparsegpt"], rungs=["LR"], **settings, watcher=Notes())
    assert any(": damping raised from 1e-12 to " in note for note in notes)
    assert notes[0].startswith("--epochs, --lr have no effect: nothing is trained"), "in none of its cells"


def test_a_cell_that_failed_before_and_is_not_asked_for_fails_no_command(here: Path, whole: Path, cli: Cli) -> None:
    folder = StudyFolder(copy_of(whole, here))
    record = read_study(folder.path)
    record["cells"][0] |= {"status": "failed", "error": "block 1: the Gram matrix is not finite"}
    folder.save(record)
    said = cli("study", "llama", "--out", "s", "--pruners", "wanda", "--rungs", "BR+GP", *STUDY)
    assert (said.code, said.err) == (0, "")
    assert [each["status"] for each in read_study(folder.path)["cells"]] == ["failed", "done"]
