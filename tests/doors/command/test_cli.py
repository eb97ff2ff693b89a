"""Each command does what its help says, shows it in plain lines, and writes the files of the contract."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import reprune
from reprune.doors.command.cli import main
from reprune.doors.command.views import show_result
from reprune.doors.formats import clock, percent, size
from tests import tiny
from tests.doors.conftest import QUICK, Cli, record_of
from tests.engine.quick import tensors

_RECIPE = {
    *("--recipe", "--pruner", "--sparsity", "--reconstruct", "--calibration", "--heldout", "--samples", "--seqlen"),
    *("--epochs", "--lr", "--batch-size", "--seed", "--only", "--include", "--exclude", "--self-generate"),
    *("--device", "--set", "--trust-remote-code"),
}
FLAGS = {
    "prune": {*_RECIPE, "--out", "--quiet", "--verbose", "--rank-timeout"},
    "plan": {*_RECIPE, "--out", "--quiet", "--on", "--ranks", "--network"},
    "resume": {"--quiet", "--verbose", "--rank-timeout"},
    "status": set(),
    "verify": {"--trust-remote-code"},
    "evaluate": {
        *("--text", "--protocol", "--seqlen", "--windows", "--against", "--no-perplexity", "--zero-shot"),
        *("--zero-shot-data", "--zero-shot-limit", "--json", "--device", "--precision", "--trust-remote-code"),
        "--quiet",
    },
    "study": {
        *_RECIPE - {"--pruner", "--reconstruct", "--seed"},
        *("--out", "--pruners", "--rungs", "--seeds", "--text", "--protocol", "--text-seqlen", "--windows"),
        *("--zero-shot", "--zero-shot-data", "--zero-shot-limit", "--keep-models", "--ray", "--ray-cpus"),
        *("--quiet", "--verbose"),
    },
    "generate": {
        *("--out", "--samples", "--length", "--least", "--temperature", "--top-p", "--top-k", "--language"),
        *("--filters", "--seed", "--batch-size", "--show", "--endpoint", "--endpoint-model", "--concurrency"),
        *("--device", "--precision", "--trust-remote-code", "--quiet", "--rank-timeout"),
    },
    "report": {"--out", "--quiet"},
    "demo": {"--out"},
}
_HEX = re.compile(r"[0-9a-f]{64}")


@pytest.mark.parametrize("command", FLAGS)
def test_every_command_has_the_flags_of_the_contract(command: str, cli: Cli) -> None:
    said = cli(command, "--help")
    assert (said.code, said.err) == (0, "")
    flags = re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", said.out, re.MULTILINE)
    assert {*flags} == {*FLAGS[command], "--help"}


def test_help_names_every_command(cli: Cli) -> None:
    said = cli("--help")
    assert said.code == 0
    assert set(re.findall(r"^  (\w+)  +[A-Z]", said.out, re.MULTILINE)) >= FLAGS.keys()
    assert cli().code == 2, "no command at all is a usage error"


def test_prune_writes_a_model_folder_with_the_record_of_the_contract(here: Path, cli: Cli) -> None:
    said = cli(
        "prune", "llama", "--out", "out", "--calibration", "text.txt", "--heldout", "manual=3", "--samples", "8",
        "--seqlen", "24", "--pruner", "wanda", "--sparsity", "2:4", "--reconstruct", "BR+GP+CR", "--epochs", "2",
        "--lr", "1e-3", "--batch-size", "4", "--seed", "3", "--device", "cpu",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    out = here / "out"
    record = record_of(out)
    assert f"sparse model   {Path('out')}\n" in said.out
    assert "sparsity       50.0 % of 3 blocks" in said.out
    for kind, name in (("calibration", "calibration "), ("heldout", "held-out    ")):
        error, share = (record["blocks"][-1][key] for key in (f"{kind}_error", f"relative_{kind}_error"))
        assert f"\n  {name} {error:.4g} ({percent(share)})\n" in said.out
    peak = size(record["peak_memory_bytes"]["host"])
    assert f"\ntime, memory   {clock(record['seconds'])}, peak {peak}\n" in said.out

    assert record["recipe"]["pruner"]["name"] == "wanda"
    assert record["recipe"]["solver"]["epochs"] == 2
    assert (record["recipe"]["sparsity"], record["recipe"]["reconstruct"]) == ("2:4", "BR+GP+CR")
    assert record["model"]["name"] == "llama"
    assert _HEX.fullmatch(record["model"]["fingerprint"])
    assert record["versions"]["reprune"] == reprune.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 3
    assert _HEX.fullmatch(record["data"]["sha256"])
    calibration, heldout = record["data"]["sources"]
    assert (calibration["role"], calibration["name"], calibration["count"]) == ("calibration", "text.txt", 8)
    assert calibration["sha256"] == hashlib.sha256((here / "text.txt").read_bytes()).hexdigest()
    assert (heldout["role"], heldout["name"], heldout["count"]) == ("heldout", "manual", 3)
    assert record["sparsity"] == 0.5
    assert [block["index"] for block in record["blocks"]] == [0, 1, 2]
    for block in record["blocks"]:
        assert block["sparsity"] == 0.5
        for key in ("calibration_error", "heldout_error", "relative_calibration_error", "relative_heldout_error"):
            assert block[key] > 0
    assert [window["index"] for window in record["windows"]] == [0, 1, 2, 3]
    assert [window["blocks"] for window in record["windows"]] == [[0], [0, 1], [1, 2], [2]]
    for window in record["windows"]:
        assert window["calibration_error"]["before"] > 0
        assert window["heldout_error"]["before"] >= window["heldout_error"]["after"] > 0
        assert window["seconds"] >= 0
    assert record["seconds"] > sum(window["seconds"] for window in record["windows"]), "and what is beside them"
    assert record["peak_memory_bytes"].keys() == {"host", "device"}
    assert record["peak_memory_bytes"]["host"] > 10**7

    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in out.glob("*.safetensors")}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "recipe.yaml"} <= {p.name for p in out.iterdir()}
    assert not (out / ".reprune").exists()
    assert "sparsity_config" not in (out / "config.json").read_text()
    assert yaml.safe_load((out / "recipe.yaml").read_text())["samples"] == 8
    AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out)("yield")["input_ids"] == tiny.tokenizer()("yield")["input_ids"]
    up = tensors(out)["model.layers.1.mlp.up_proj.weight"]
    assert ((up.reshape(-1, 4) == 0).sum(dim=1) == 2).all()


def test_a_loss_that_is_of_one_feature_is_said(here: Path, cli: Cli) -> None:
    plain = cli("prune", "llama", "--out", "plain", *QUICK)
    assert "one feature's" not in plain.out
    shutil.copytree(here / "llama", here / "massive")
    weights = load_file(here / "massive" / "model.safetensors")
    weights["model.embed_tokens.weight"][:, 3] += 30.0
    save_file(weights, here / "massive" / "model.safetensors", metadata={"format": "pt"})
    said = cli("prune", "massive", "--out", "ruled", *QUICK)
    shares = [window["largest_feature"] for window in record_of(here / "ruled")["windows"]]
    assert max(shares) > 0.5
    assert f"loss           up to {percent(max(shares))} of the power that it compares is in one feature;\n" in said.out
    assert "--set solver.loss=standardized counts all features alike\n" in said.out
    other = cli("prune", "massive", "--out", "other", "--set", "solver.loss=standardized", *QUICK)
    assert "one feature's" not in other.out


def test_what_the_guard_did_and_auto_chose_is_said(here: Path, cli: Cli) -> None:
    said = cli(
        "prune", "llama", "--out", "chosen", "--calibration", "text.txt", "--samples", "8", "--seqlen", "24",
        "--reconstruct", "auto", "--only", "attention", "--epochs", "6", "--lr", "0.5", "--batch-size", "4",
        "--set", "solver.betas=[0.9, 0.95]", "--device", "cpu",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    record = record_of(here / "chosen")
    guards = [window["guard"] for window in record["windows"]]
    early = [guard for guard in guards if guard["run_epochs"] < guard["planned_epochs"]]
    assert early, "or this shows nothing"
    spared = sum(guard["planned_epochs"] - guard["run_epochs"] for guard in early)
    assert f"guard          stopped {len(early)} of 4 windows early: {spared} epochs not run\n" in said.out
    restored = sum(window["kept_epoch"] < len(window["epochs"]) for window in record["windows"])
    assert f"put back an earlier, better state in {restored} of 4\n" in said.out
    sizes = [len(window["reconstructed"]) for window in record["windows"]]
    none, one, two = (sizes.count(size) for size in range(3))
    windows = "1 window" if none == 1 else f"{none} windows"
    assert f"auto           fitted nothing in {windows}, one block in {one}, two in {two}\n" in said.out
    names = {matrix["name"] for block in record["blocks"] for matrix in block["matrices"]}
    assert names == {f"self_attn.{part}_proj" for part in "qkvo"}


def test_a_window_without_an_error_is_one_in_which_auto_fitted_nothing(cli: Cli) -> None:
    said = cli("prune", "llama", "--out", "part", *QUICK, "--reconstruct", "auto", "--exclude", "0.*")
    assert (said.code, said.err) == (0, "")
    counts = re.search(r"auto +fitted nothing in (\d) windows?, one block in (\d), two in (\d)\n", said.out)
    assert counts is not None and int(counts[1]) >= 1 and sum(map(int, counts.groups())) == 4


def test_larger_windows_that_auto_chose_are_counted_too(
    here: Path, cli: Cli, capfd: pytest.CaptureFixture[str]
) -> None:
    said = cli("prune", "llama", "--out", "large", *QUICK, "--reconstruct", "auto", "--set", "schedule.size=3")
    assert (said.code, said.err) == (0, "")
    record = record_of(here / "large")
    for window, chosen in zip(record["windows"], ([0], [0, 1], [0, 1, 2], [2], []), strict=True):
        window["reconstructed"] = chosen
    show_result(record, here / "large")
    assert "auto           fitted nothing in 1 window, one block in 2, two in 1, 3 in 1\n" in capfd.readouterr().out


def test_without_the_guard_nothing_is_said_of_it(here: Path, cli: Cli) -> None:
    said = cli(
        "prune", "llama", "--out", "plain", "--calibration", "text.txt", "--samples", "8", "--seqlen", "24",
        "--epochs", "1", "--device", "cpu", "--set", "guard=off",
    )  # fmt: skip
    assert said.code == 0
    assert "guard" not in said.out


def test_the_record_tells_nothing_of_the_machine_that_it_was_made_on(here: Path, cli: Cli) -> None:
    (here / "jane-doe").mkdir()
    (here / "text.txt").rename(here / "jane-doe" / "text.txt")
    text = here / "jane-doe" / "text.txt"
    flags = [*QUICK[2:], "--calibration", str(text), "--heldout", f"{text}=2"]
    assert cli("prune", here / "llama", "--out", here / "out", *flags).code == 0
    said = (here / "out" / "reprune.json").read_text()
    assert str(here) not in said
    assert "jane-doe" not in said
    assert f'"{platform.node()}"' not in said
    assert not re.search(r'"[/~\\]', said)
    assert record_of(here / "out")["recipe"]["calibration"] == ["./text.txt"]


def test_a_flag_goes_over_the_recipe_and_the_recipe_over_the_default(here: Path, cli: Cli) -> None:
    recipe = {"sparsity": "2:4", "samples": 5, "seqlen": 20, "solver": {"lr": 0.01, "epochs": 1}, "seed": 7}
    (here / "mine.yaml").write_text(yaml.safe_dump({**recipe, "calibration": ["text.txt"], "exclude": "down_proj"}))
    flags = [
        "--recipe",
        "mine.yaml",
        "--samples",
        "6",
        "--epochs",
        "3",
        "--set",
        "seqlen=24",
        "--set",
        "solver.epochs=2",
    ]
    assert cli("prune", "llama", "--out", "out", *flags).code == 0
    made = yaml.safe_load((here / "out" / "recipe.yaml").read_text())
    assert (made["samples"], made["seqlen"], made["solver"]["epochs"]) == (6, 24, 2)  # flags and --set
    assert (made["sparsity"], made["solver"]["lr"], made["seed"], made["exclude"]) == ("2:4", 0.01, 7, ["down_proj"])
    assert (made["pruner"]["name"], made["reconstruct"], made["solver"]["batch_size"]) == ("sparsegpt", "BR+GP", 8)
    assert made["device"] in ("cpu", "cuda")  # not auto: the record must say what was done


@pytest.mark.parametrize("command", [("prune", "--out", "out"), ("plan",)])
def test_a_recipe_file_that_alone_lets_code_run_is_said(command: tuple[str, ...], here: Path, cli: Cli) -> None:
    (here / "theirs.yaml").write_text("trust_remote_code: true")
    note = "note: theirs.yaml sets trust_remote_code: Python code that comes with the model\n      is run\n"
    for more, expected in [((), note), (("--trust-remote-code",), ""), (("--set", "trust_remote_code=false"), "")]:
        said = cli(*command, "./no-model", "--recipe", "theirs.yaml", *more)
        assert (said.code, said.out.partition("reading the model")[0]) == (2, expected)
    assert cli(*command, "./no-model", "--recipe", "theirs.yaml", "--quiet").out == ""


@pytest.mark.parametrize("recipe", ["recipe.yaml", "reprune.json"])
def test_the_recipe_of_a_result_makes_it_again(recipe: str, here: Path, cli: Cli) -> None:
    assert cli("prune", "llama", "--out", "first", *QUICK, "--seed", "5", "--pruner", "magnitude").code == 0
    assert cli("prune", "llama", "--out", "second", "--recipe", f"first/{recipe}").code == 0
    first, second = tensors(here / "first"), tensors(here / "second")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (here / "first" / "recipe.yaml").read_text() == (here / "second" / "recipe.yaml").read_text()


def test_an_empty_folder_is_written_to(here: Path, cli: Cli) -> None:
    (here / "deep" / "out").mkdir(parents=True)
    assert cli("prune", "llama", "--out", "deep/out", *QUICK).code == 0
    assert cli("prune", "llama", "--out", "new/below/new", *QUICK).code == 0
    assert record_of(here / "deep" / "out")["blocks"] == record_of(here / "new" / "below" / "new")["blocks"]


def test_quiet_prints_nothing(cli: Cli) -> None:
    said = cli("prune", "llama", "--out", "out", *QUICK, "-q")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_verbose_prints_every_epoch(cli: Cli) -> None:
    said = cli("prune", "llama", "--out", "out", *QUICK, "-v")
    epochs = re.findall(r"^ +epoch (\d)/2: calibration [\d.]+ %, held-out [\d.]+ %$", said.out, re.MULTILINE)
    assert epochs == ["1", "2"] * 3
    assert said.out.count("reconstruction\n") == 3
    assert not re.search(r"epoch \d", cli("prune", "llama", "--out", "other", *QUICK).out)


@pytest.mark.parametrize("rung", ["LR", "BR+GP+CR"])
def test_off_a_terminal_no_command_prints_control_characters(rung: str, cli: Cli) -> None:
    commands = [
        ["prune", "llama", "--out", "out", *QUICK, "--reconstruct", rung, "-v"],
        ["plan", "llama", *QUICK],
        ["status", "out"],
        ["evaluate", "out", "--text", "text.txt", "--windows", "3"],
    ]
    for command in commands:
        said = cli(*command)
        assert (said.code, said.err) == (0, "")
        assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f]*", said.out), "neither colours nor a line drawn over"
        assert said.out.endswith("\n")


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "llama", "--out", "another", *QUICK, "-v"],
        ["plan", "llama", *QUICK],
        ["status", "out"],
        ["evaluate", "out", "--text", "text.txt", "--windows", "3"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_prints_lines_of_more_than_80_columns(command: list[str], cli: Cli) -> None:
    assert cli("prune", "llama", "--out", "out", *QUICK, "-q").code == 0
    said = cli(*command)
    assert said.code == 0
    assert [line for line in said.out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"], ids=["any", "C"])
def test_signs_that_a_terminal_does_not_know_end_no_run(
    errors: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the C locale, Python's output has another error handler."""
    with TextIOWrapper(BytesIO(), encoding="ascii", errors=errors) as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            main(["prune", "llama", "--out", "out", *QUICK, "--reconstruct", "LR"])
        output.seek(0)
        assert "errors: ||sparse - target||? / ||target||?" in output.read()
    assert end.value.code == 0
    assert (here / "out" / "reprune.json").exists()


def test_prune_prints_a_table_with_a_line_for_each_window(cli: Cli) -> None:
    said = cli("prune", "llama", "--out", "out", *QUICK, "--reconstruct", "BR+GP+CR")
    change = r"[\d.]+ %(?: > [\d.]+ %)?"
    rows = re.findall(rf"^ +(\d/4)  (\S+) +{change} +{change} +[\d.]+ s +([\d.]+) s\b.*$", said.out, re.MULTILINE)
    assert [row[:2] for row in rows] == [("1/4", "0"), ("2/4", "0-1"), ("3/4", "1-2"), ("4/4", "2")]
    assert rows[-1][2] == "0.0", "no time is left"
    heads = re.findall("^ window +blocks +calibration error +held-out error +time +left\\b.*$", said.out, re.MULTILINE)
    assert len(heads) == 1
    head = next(line for line in said.out.splitlines() if line.startswith(" window"))
    row = next(line for line in said.out.splitlines() if " 1/4 " in line)
    for column in ("blocks", "calibration error", "held-out error"):
        at = head.index(column)
        assert row[at - 1] == " " != row[at]
    assert len(head) == len(row)


def test_status_says_that_a_run_is_finished(cli: Cli) -> None:
    assert cli("prune", "llama", "--out", "out", *QUICK, "--sparsity", "4:8").code == 0
    said = cli("status", "out")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("out: llama, sparsegpt 4:8, BR+GP\n3 of 3 windows finished\n")
    assert said.out.endswith("finished\n")
