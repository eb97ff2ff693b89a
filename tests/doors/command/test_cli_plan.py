"""plan says what prune would do, and refuses what prune would refuse."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import reprune
from reprune.doors import planned
from reprune.doors.formats import size
from reprune.engine import machines
from reprune.model.checkpoint import Checkpoint
from reprune.model.decoder import Decoder
from tests import tiny
from tests.doors.conftest import QUICK, Cli, record_of
from tests.doors.study.runs import QUICK as ARGUMENTS


def test_settings_without_effect_are_told(here: Path, cli: Cli) -> None:
    idle = ["distill.epochs=2", "solver.ridge=0.1", 'sparsity_by_name={"mlp.*": 0.7}']
    lr = ["--reconstruct", "LR", "--only", "attention", "--device", "cpu", "--set", *idle]
    flags = [flag for flag in QUICK if flag not in ("--device", "cpu")]
    for command in (["plan", "llama"], ["prune", "llama", "--out", "out"]):
        said = cli(*command, *flags, *lr)
        assert (said.code, said.err) == (0, "")
        found = " ".join(said.out.split())
        assert "note: --epochs, --lr have no effect: nothing is trained (solver.name is none)" in found
        assert "note: solver.ridge has no effect: it is of solver.start least-squares" in found
        assert "note: distill.epochs has no effect: distill.blocks is 0" in found
        assert "note: sparsity_by_name: 'mlp.*' has no effect: all that it fits stays dense" in found
        assert max(map(len, said.out.splitlines())) <= 80
    again = cli("plan", "llama", "--recipe", here / "out" / "reprune.json")
    assert "no effect" not in " ".join(again.out.split()).replace("'mlp.*' has no effect", ""), "it has all settings"
    elsewhere = cli("plan", "llama", *flags, "--device", "cpu", "--on", "h100")
    assert "note: --device cpu has no effect: the forecast is for one H100" in " ".join(elsewhere.out.split())


def test_plan_loads_no_weights_and_writes_nothing(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: pytest.fail(f"{name} was read"))
    monkeypatch.setattr(Decoder, "load", lambda *_: pytest.fail("a block was loaded"))
    (here / "text.txt").write_text(tiny.text(200_000), encoding="utf-8")
    before = sorted(here.rglob("*"))
    said = cli("plan", "llama", "--calibration", "text.txt", "--sparsity", "2:4", "--reconstruct", "BR+GP+CR")
    assert (said.code, said.err) == (0, "")
    assert sorted(here.rglob("*")) == before
    for line in (
        "llama: 48,352 weights",
        "sparsegpt at 2:4: 27,648 weights (57.2 %)",
        "BR+GP+CR: global teacher; adam, 10 epochs",
        "4 windows of size 2, stride 1",
        "256 of 128 tokens from text.txt",
        "0-2     mlp.gate_proj, mlp.up_proj  ",
        "0-2     mlp.down_proj  ",
    ):
        assert line in said.out
    assert re.search(r"self_attn.q_proj, self_attn.k_proj, +32 x 32, 16 x 32, 16 x 32 *\n +self_attn.v_proj", said.out)
    assert "refused" not in said.out
    assert "training" not in said.out
    settings = ["--set", "solver.loss=standardized", "--set", "solver.teacher_forcing=0.5"]
    other = cli("plan", "llama", "--calibration", "text.txt", "--reconstruct", "BR+GP+CR", *settings)
    assert "\ntraining   standardized loss, teacher forcing 0.5\nschedule " in other.out
    assert "; adam, 1 epoch\n" in cli("plan", "llama", "--calibration", "text.txt", "--epochs", "1").out
    auto = cli("plan", "llama", "--calibration", "text.txt", "--reconstruct", "auto", "--epochs", "1")
    assert "; widening, 2 epochs\n" in auto.out


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])  # test_decoder.py compares the groups of all models
def test_plan_counts_what_prune_prunes(name: str, here: Path, cli: Cli) -> None:
    tiny.save(name, here / name)
    planned = cli("plan", name, *QUICK)
    assert planned.code == 0
    assert cli("prune", name, "--out", "out", *QUICK, "--reconstruct", "LR").code == 0
    matrices = [matrix for block in record_of(here / "out")["blocks"] for matrix in block["matrices"]]
    weights = sum(matrix["rows"] * matrix["columns"] for matrix in matrices)
    assert f" {weights:,} weights (" in planned.out
    assert all(matrix["name"] in planned.out for matrix in matrices)


def test_plan_refuses_what_prune_refuses(here: Path, cli: Cli) -> None:
    flags = [*QUICK, "--sparsity", "3:5"]
    planned, pruned = cli("plan", "llama", *flags), cli("prune", "llama", "--out", "out", *flags)
    assert planned.code == pruned.code == 2
    assert len(planned.err.splitlines()) == 7
    assert planned.err == pruned.err
    assert "refused" not in planned.out and "schedule   3 windows" in planned.out
    assert not (here / "out").exists()
    left = cli("plan", "llama", *QUICK, "--sparsity", "3:4", "--set", "exclude=[down_proj, 'self_attn.*']")
    assert left.code == 0
    assert "mlp.down_proj (stays dense)" in left.out
    assert "self_attn.q_proj (stays dense)" in left.out


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("text.txt --samples 9999", "expected"),
        ("empty.txt", "the file is empty"),
        ("bad.jsonl", "line 2: expected one JSON object"),
        ("text.txt:column", "expected no column"),
        ("folder::nowhere", "nowhere"),
        ("text.txt --heldout folder:default folder::train", "is the same text"),
    ],
)
def test_plan_refuses_the_texts_that_prune_refuses(source: str, said: str, here: Path, cli: Cli) -> None:
    (here / "empty.txt").write_text(" ")
    (here / "bad.jsonl").write_text('{"text": "a"}\n{bad\n')
    (here / "folder").mkdir()
    (here / "folder" / "train.jsonl").write_text(json.dumps({"text": tiny.text(6_000)}))
    flags = ["llama", *QUICK, "--calibration", *source.split()]
    quiet, pruned = cli("plan", *flags, "-q"), cli("prune", *flags, "--out", "out")
    assert quiet.code == pruned.code == 2
    assert said in pruned.err
    assert quiet.err == pruned.err


def test_plan_names_the_texts_that_it_does_not_read(here: Path, cli: Cli) -> None:
    assert "not read" not in cli("plan", "llama", *QUICK).out
    hub = ["--calibration", "text.txt=2", "org/name=2", "--heldout", "c4", "--self-generate", "2"]
    said = cli("plan", "llama", *QUICK, *hub)
    assert (said.code, said.err) == (0, "")
    assert "\nnot read   org/name, c4, the model's own texts: prune may yet refuse them\n" in said.out
    short = cli("plan", "llama", *QUICK, *hub, "--calibration", "text.txt=9999", "-q")
    assert short.code == 2
    assert short.err.startswith("error: source 'text.txt': expected ")
    planned = reprune.plan("llama", calibration="org/name", samples=8)
    assert (planned.unread, planned.refusals) == (("org/name",), ())


def test_plan_takes_the_folder_too_and_refuses_what_prune_would_for_it(here: Path, cli: Cli) -> None:
    flags = ["llama", "--out", "out", *QUICK, "--reconstruct", "LR"]
    said = cli("plan", *flags)
    assert (said.code, said.err) == (0, "")
    assert "schedule   3 windows" in said.out and "refused" not in said.out
    assert not (here / "out").exists()
    quiet = cli("plan", *flags, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    (here / "out").mkdir()
    (here / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    planned, pruned = cli("plan", *flags), cli("prune", *flags)
    assert planned.code == pruned.code == 2
    assert "schedule   3 windows" in planned.out
    assert planned.err == pruned.err
    quiet = cli("plan", *flags, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (2, "", pruned.err)


def test_plan_forecasts_for_a_machine_that_is_not_here(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "measure_speed", lambda *_: pytest.fail("this machine was measured"))
    flags = ["plan", "llama", "--calibration", "text.txt", "--samples", "4"]
    said = cli(*flags, "--on", "h100")
    assert (said.code, said.err) == (0, "")
    assert "device     one H100 (SXM, 80 GB), products in bfloat16\n" in said.out
    assert " on the device;" in said.out and "does not fit" not in said.out
    assert "(24 GB), products in float32\n" in cli(*flags, "--on", "4090", "--set", "precision=float32").out
    monkeypatch.setitem(machines.MACHINES, "4090", replace(machines.MACHINES["4090"], memory_bytes=1000))
    small = " ".join(cli(*flags, "--on", "4090").out.split())
    assert "note this does not fit in the 1 kB of that device; try" in small
    assert "in windows of several blocks also solver.checkpointing" in small, "it saves nothing in others"
    unknown = cli(*flags, "--on", "tpu")
    assert (unknown.code, unknown.err) == (2, "error: --on tpu: expected one of h100, a100, 4090.\n")


def test_what_plan_says_in_words_fits_80_columns(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machines.MACHINES, "h100", replace(machines.MACHINES["h100"], memory_bytes=1000))
    flags = ["--calibration", "text.txt", "org/name-that-is-long", "--samples", "4", "--self-generate", "2"]
    said = cli("plan", "llama", *flags, "--ranks", "4", "--on", "h100")
    assert said.code == 0
    for line in ("not read   ", "generation ", "processes  4: ", "note       this does not fit "):
        assert f"\n{line}" in said.out
    assert [line for line in said.out.splitlines() if len(line) > 80] == []


def test_plan_refuses_a_source_that_is_not_there(cli: Cli) -> None:
    assert cli("plan", "llama", "--calibration", "missing.txt").code == 2


def test_plan_forecasts_for_several_processes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "resident_bytes", lambda: 10**9)
    said = cli("plan", "llama", *QUICK, "--ranks", "2")
    assert said.code == 0
    assert "processes  2: time and memory are for each of them; each sends about " in said.out
    forecast, words = reprune.plan("llama", **ARGUMENTS, ranks=2).forecast, " ".join(said.out.split())
    assert forecast.memory_bytes > 10**9
    assert f"; peak memory {size(forecast.memory_bytes)}; {size(forecast.disk_bytes)} on disk " in words
    assert f"each sends about {size(forecast.exchanged_bytes)} over" in words
    assert "processes" not in cli("plan", "llama", *QUICK).out
    linked = cli("plan", "llama", *QUICK, "--ranks", "2", "--on", "h100").out
    assert "over NVLink of H100" in " ".join(linked.split())  # over two lines
