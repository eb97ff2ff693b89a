"""If a folder lacks what a model is read from, the message says what it holds instead and what to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from reprune.errors import InputError
from reprune.model import gguf
from reprune.model.locate import locate_model
from tests import tiny

_OF_TRAINER = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `run` of the working folder, with the files that a trainer leaves beside weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name in _OF_TRAINER:
        (tmp_path / "run" / name).touch()
    return tmp_path / "run"


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize(
    ("files", "way"),
    [
        (
            ["zero_to_fp32.py", "latest", "global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt"],
            r"'python run/zero_to_fp32\.py run OUT --safe_serialization'",
        ),
        (
            ["pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"],
            "'accelerate merge-weights run/pyt.*_0 OUT'",
        ),
        (["__0_0.distcp", ".metadata"], "the trainer"),
    ],
    ids=["deepspeed", "fsdp", "distributed"],
)
def test_weights_in_parts_of_a_training_run_are_to_be_put_together(
    folder: Path, files: list[str], way: str, configured: bool
) -> None:
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    if configured:
        tiny.CONFIGS["llama"]().save_pretrained(folder)
    with pytest.raises(InputError, match=f"^run: its weights are in parts, .*; have {way} merge them"):
        locate_model("run")


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_whole_weights_are_loaded_though_the_script_for_parts_lies_beside_them(folder: Path, pickle: str) -> None:
    """Trainers leave the script there, and the Hub has such folders, without the parts."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for name in (pickle, "pytorch_model-00001-of-00001.bin", "zero_to_fp32.py", "latest"):
        (folder / name).touch()
    with pytest.raises(InputError, match=r"^run: its weights are pickles .*from_pretrained\('run'\)\.save_pretrained"):
        locate_model("run")


def test_a_checkpoint_of_deepspeed_without_config_json_is_put_together_though_that_was_done_before(
    folder: Path,
) -> None:
    """DeepSpeed saves no config.json; older releases of its script write one pickle of all weights."""
    for name in ("pytorch_model.bin", "zero_to_fp32.py", "latest"):
        (folder / name).touch()
    with pytest.raises(InputError, match=r"^run: its weights are in parts, .*, copy config\.json and the tokenizer's"):
        locate_model("run")


def test_what_else_a_trainer_keeps_as_pickles_is_not_taken_for_weights(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match=r"^run: holds no \*\.safetensors files"):
        locate_model("run")


def test_pickles_that_transformers_does_not_look_for_are_for_what_wrote_them(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "pytorch_model_fsdp.bin").touch()
    with pytest.raises(
        InputError, match=r"pickles \(pytorch_model_fsdp\.bin\).* have the program that wrote them save the model"
    ):
        locate_model("run")
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"AutoModelForCausalLM\.from_pretrained\('run'\)\.save_pretrained\(FOLDER\)"):
        locate_model("run")


def test_pickles_of_a_model_of_several_parts_are_for_its_own_class(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["Gemma3ForConditionalGeneration"]}))
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"Gemma3ForConditionalGeneration\.from_pretrained\('run'\).* AutoProcessor,"):
        locate_model("run")


def test_the_models_within_a_folder_are_named(folder: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2", "snapshots/abc", "snapshots/def"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").touch()
    shown = "run/checkpoint-1, run/checkpoint-2, run/snapshots/abc and 1 more: give the folder that you mean"
    with pytest.raises(InputError, match=f"^run: has no config.json, .* there is one in {shown}"):
        locate_model("run")


def test_a_makers_own_format_is_told(folder: Path) -> None:
    for name in ("params.json", "consolidated.safetensors"):
        (folder / name).touch()
    with pytest.raises(InputError, match=r"^run: has no config\.json; its params\.json is of its maker's own format"):
        locate_model("run")


def test_for_a_file_of_a_model_its_folder_is_named(folder: Path) -> None:
    tiny.save("llama", folder)
    with pytest.raises(InputError, match=r"^run/model\.safetensors: is one file of a model; give the folder .*: run$"):
        locate_model("run/model.safetensors")


def test_a_gguf_file_is_one_by_any_name_beside_a_model_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(folder))
    monkeypatch.setattr(gguf, "is_whole", lambda folder: True)
    tiny.CONFIGS["llama"]().save_pretrained(folder)
    content = b"GGUF and more"
    (folder / "blob").write_bytes(content)
    assert locate_model("run/blob") == gguf.converted_folder("blob", hashlib.sha256(content).hexdigest())
