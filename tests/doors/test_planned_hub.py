"""A plan of a Hub model downloads none of its weights: it reads their headers, and says what `prune` says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

import reprune
from reprune.doors.given import made_recipe
from reprune.doors.planned import plan_by_recipe
from reprune.engine.watcher import Watcher
from reprune.errors import InputError
from reprune.model import checkpoint
from tests.doors.conftest import Cli
from tests.hub import COMMIT, Hub, serving

RUN: dict[str, Any] = {"calibration": "text.txt", "samples": 6, "seqlen": 24, "device": "cpu"}
FLAGS = [text for key, value in RUN.items() for text in (f"--{key}", str(value))]


@pytest.fixture
def hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Has owner/tiny, the model that is also in the folder `llama`."""
    shutil.copytree(here / "llama", here / "hub" / "models" / "owner" / "tiny")
    constants = huggingface_hub.constants
    with serving(here / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        url = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def files_of(hub: Hub) -> Path:
    return hub.folder / "models" / "owner" / "tiny"


def shard(folder: Path) -> list[str]:
    """Split a model's file into three with an index; return their names."""
    tensors = load_file(folder / "model.safetensors")
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        save_file({key: tensors[key] for key in sorted(tensors)[number::3]}, folder / name, {"format": "pt"})
    weight_map = {key: names[place % 3] for place, key in enumerate(sorted(tensors))}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return names


def described(model: str) -> tuple[object, ...]:
    plan = reprune.plan(model, "out", **RUN, settings="self_generate.samples=4")
    entries = {name: (one.shape, one.dtype, one.bytes) for name, one in plan.decoder.checkpoint.entries.items()}
    return entries, plan.survey, plan.samples, plan.texts, plan.refusals, plan.forecast.disk_bytes


@pytest.mark.parametrize("sharded", [False, True])
def test_a_plan_of_a_hub_model_is_that_of_the_folder_and_downloads_no_weights(hub: Hub, sharded: bool) -> None:
    folder = files_of(hub)
    whole = (folder / "model.safetensors").stat().st_size
    names = shard(folder) if sharded else ["model.safetensors"]
    assert described("owner/tiny") == described("llama")
    hub.sent.clear()
    plan = reprune.plan("owner/tiny", **RUN)
    assert plan.undownloaded_bytes == plan.bytes
    assert not [*plan.folder.glob("*.safetensors")]
    assert {name for name in hub.sent if name.endswith(".safetensors")} == {*names}
    assert sharded or hub.sent["model.safetensors"] < whole  # the library asks for 100 kB of a file, or its header


def test_only_headers_of_files_that_are_not_in_the_cache_are_read(hub: Hub) -> None:
    first, *others = shard(files_of(hub))
    huggingface_hub.snapshot_download("owner/tiny", allow_patterns=[first])
    hub.sent.clear()
    plan = reprune.plan(f"owner/tiny@{COMMIT}", **RUN)
    there = {entry.file.name for entry in plan.decoder.checkpoint.entries.values()}
    assert there == {first, *others}
    assert {name for name in hub.sent if name.endswith(".safetensors")} == {*others}
    assert 0 < plan.undownloaded_bytes < plan.bytes


def test_further_copies_of_the_weights_do_not_count_and_a_file_may_have_any_name(hub: Hub) -> None:
    folder = files_of(hub)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    plan = reprune.plan("owner/tiny", **RUN)
    assert plan.bytes == reprune.plan("llama", **RUN).bytes
    assert {name for name in hub.sent if name.endswith(".safetensors")} == {"weights.safetensors"}


def test_prune_downloads_what_the_plan_counts(hub: Hub, cli: Cli) -> None:
    folder = files_of(hub)
    shutil.copy(folder / "model.safetensors", folder / "model-of-a-draft.safetensors")
    said = cli("plan", "owner/tiny", *FLAGS)
    assert "\ndownload   193 kB first, by prune;" in said.out
    hub.sent.clear()
    assert cli("prune", "owner/tiny", "--out", "out", *FLAGS, "--epochs", "1").code == 0
    assert {name for name in hub.sent if name.endswith(".safetensors")} == {"model.safetensors"}


def test_a_plan_says_what_prune_downloads_first_until_it_is_there(hub: Hub, cli: Cli) -> None:
    said = cli("plan", "owner/tiny", *FLAGS)
    assert said.code == 0
    assert "\ndownload   193 kB first, by prune; the forecast leaves out the time for this\n" in said.out
    assert cli("prune", "owner/tiny", "--out", "out", *FLAGS, "--epochs", "1").code == 0
    hub.sent.clear()
    again = cli("plan", "owner/tiny", *FLAGS)
    assert "download" not in again.out
    assert again.err == ""  # nor a bar for files that are all in the cache
    assert not hub.sent


def test_a_plan_refuses_weights_for_which_the_cache_has_no_room(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    del hub
    plan = reprune.plan("owner/tiny", **RUN)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    (said,) = plan.refusals
    assert said.startswith("owner/tiny: its weights are still to be downloaded, 193 kB, but 1 kB are free in ")
    assert said.endswith("; set HF_HUB_CACHE to a folder on another disk.")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: pytest.fail("of a local model nothing is downloaded"))
    elsewhere = reprune.plan("owner/tiny", **RUN, on="h100")
    assert elsewhere.refusals == reprune.plan("llama", **RUN).refusals == ()


def test_a_plan_refuses_a_folder_for_which_the_download_leaves_no_room(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    del hub
    plan = reprune.plan("owner/tiny", "out", **RUN)
    both = plan.undownloaded_bytes + plan.forecast.disk_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=both))
    assert plan.refusals == ()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=both - 1))
    (said,) = replace(plan).refusals
    assert re.fullmatch("--out out: a run .* are free there once the model is downloaded; give a folder on an.*", said)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/dev/none")  # another disk
    assert replace(plan).refusals == ()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (503, r"owner/tiny: .*the Hub fails \(503\); try again later"),
        (403, r"owner/tiny: .*the Hub does not let you read it \(403\)"),
    ],
)
def test_a_header_that_the_hub_does_not_give_is_reported(hub: Hub, status: int, said: str) -> None:
    hub.failing["model.safetensors"] = status
    with pytest.raises(InputError, match=said):
        reprune.plan("owner/tiny", **RUN)


def test_a_file_that_is_none_of_safetensors_is_reported(hub: Hub) -> None:
    (files_of(hub) / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"owner/tiny: model.safetensors is not a safetensors file \(.*; give a rev"):
        reprune.plan("owner/tiny", **RUN)


@pytest.mark.parametrize("offline", [False, True])
def test_weights_that_were_never_downloaded_are_missed_without_the_hub(
    hub: Hub, offline: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reprune.plan("owner/tiny", **RUN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    if not offline:
        nobody = "http://127.0.0.1:9"
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.endpoint, nobody)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    why = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
    capfd.readouterr()
    for call in (lambda: reprune.plan("owner/tiny", **RUN), lambda: reprune.prune("owner/tiny", "out", **RUN)):
        with pytest.raises(InputError, match=f"^owner/tiny: no folder here, nor is it whole in the .*, and {why}; go"):
            call()
    assert capfd.readouterr().err == ""
    assert not Path("out").exists()


def test_a_hub_model_without_safetensors_is_refused_as_by_prune(hub: Hub) -> None:
    folder = files_of(hub)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for call in (lambda: reprune.plan("owner/tiny", **RUN), lambda: reprune.prune("owner/tiny", "out", **RUN)):
        with pytest.raises(InputError, match="owner/tiny: its weights are pickles"):
            call()


def test_a_plan_of_a_model_that_is_all_here_asks_and_reads_no_more_than_it_must(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here is one without a tokenizer: a plan says so, as it does of a folder, also without the Hub."""
    for file in files_of(hub).glob("tokenizer*"):
        file.unlink()
    huggingface_hub.snapshot_download("owner/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    read = []
    header = checkpoint._read_header
    monkeypatch.setattr(checkpoint, "_read_header", lambda file: read.append(file) or header(file))  # type: ignore[func-returns-value]
    (said,) = reprune.plan("owner/tiny", **RUN).refusals
    assert "owner/tiny: its tokenizer " in said
    assert len(read) == 1


@pytest.mark.usefixtures("hub")
def test_a_plan_for_a_run_that_follows_downloads_the_weights() -> None:
    watcher = Watcher()
    plan = plan_by_recipe(made_recipe("owner/tiny", None, dict(RUN), (), watcher), watcher)
    assert plan.undownloaded_bytes == 0
    assert (plan.folder / "model.safetensors").exists()
