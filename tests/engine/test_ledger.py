"""An interrupted run resumes after its last finished window and ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import reprune
from reprune.doors import api
from reprune.engine.ledger import Ledger
from reprune.engine.watcher import Watcher
from reprune.errors import ChangedError, InputError
from reprune.files.sealed import seal, unseal
from reprune.model.checkpoint import Checkpoint
from reprune.planning.schedule import Window
from tests import tiny
from tests.damage import flip_bit

Whole = Callable[[str], Path]


class Interrupted(Exception):
    """Stands for anything that ends a process."""


class InterruptAt(Watcher):
    """Interrupts a run in a phase of a window, or right after the window is finished."""

    def __init__(self, window: int, phase: str | None = None) -> None:
        self._window = window
        self._phase = phase

    def phase(self, window: Window | None, what: str) -> None:
        if window is not None and (window.index, what) == (self._window, self._phase):
            raise Interrupted

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        if self._phase is None and window.index == self._window:
            raise Interrupted


class ChangeAt(Watcher):
    """Replaces a file right after a window is finished or, for None, when the rest of the result is being written."""

    def __init__(self, file: Path, content: bytes, window: int | None) -> None:
        self._file = file
        self._content = content
        self._window = window

    def phase(self, window: Window | None, what: str) -> None:
        if self._window is None and what == "writing the result":
            self._replace()

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        if window.index == self._window:
            self._replace()

    def _replace(self) -> None:
        new = self._file.with_name("new")
        new.write_bytes(self._content)
        new.replace(self._file)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("models") / "llama", dtype=torch.bfloat16)


def prune(model: Path, out: Path, rung: str, watcher: Watcher | None = None, *settings: str) -> dict[str, Any]:
    return reprune.prune(
        model, out, reconstruct=rung, calibration="manual", samples=6, seqlen=24, epochs=2, lr=1e-3, batch_size=4,
        device="cpu", settings=["precision=float32", *settings], watcher=watcher,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The result of an uninterrupted run at a rung; tests must not change it."""

    @cache
    def made(rung: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / "out"
        prune(llama, out, rung)
        return out

    return made


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.mark.parametrize("rung", ["LR", "BR+GP", "BR+GP+CR"])
@pytest.mark.parametrize("phase", ["targets", "reconstruction", "advancing", None])
@pytest.mark.parametrize("window", [0, 2])
def test_resume_ends_with_the_same_bits(
    llama: Path, whole: Whole, rung: str, phase: str | None, window: int, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", rung, InterruptAt(window, phase))
    before = reprune.status(tmp_path / "cut")
    assert not before.finished
    assert before.windows_done == (window + 1 if phase is None else window)
    record = reprune.resume(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(whole(rung))
    wanted = json.loads((whole(rung) / "reprune.json").read_text())
    assert [block["calibration_error"] for block in record["blocks"]] == [
        block["calibration_error"] for block in wanted["blocks"]
    ]
    assert reprune.status(tmp_path / "cut").finished


def test_resume_on_disk_streams(llama: Path, whole: Whole, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", "BR+GP", InterruptAt(1, "reconstruction"), "streams.memory=0B")
    reprune.resume(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(whole("BR+GP"))


def test_an_unfinished_folder_is_not_a_model_and_is_not_overwritten(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", "LR", InterruptAt(1))
    assert not (tmp_path / "cut" / "config.json").exists()
    with pytest.raises(InputError, match="reprune resume"):
        prune(llama, tmp_path / "cut", "LR")


def test_a_line_cut_short_by_a_crash_counts_as_not_written(llama: Path, whole: Whole, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", "BR+GP+CR", InterruptAt(2, "reconstruction"))
    ledger = tmp_path / "cut" / ".reprune" / "ledger.jsonl"
    with ledger.open("a") as file:
        file.write('{"window": {"index": 2, "blo')
    assert reprune.status(tmp_path / "cut").windows_done == 2
    reprune.resume(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(whole("BR+GP+CR"))


def test_a_copy_by_hard_links_is_a_run_of_its_own(llama: Path, whole: Whole, tmp_path: Path) -> None:
    """As made quickly by `cp -al`."""
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", "BR+GP+CR", InterruptAt(2, "reconstruction"))
    shutil.copytree(tmp_path / "cut", tmp_path / "copy", copy_function=os.link)
    for folder in (tmp_path / "copy", tmp_path / "cut"):
        assert reprune.status(folder).windows_done == 2
        reprune.resume(folder)
        assert files(folder) == files(whole("BR+GP+CR"))


def test_a_finished_run_has_nothing_to_resume(llama: Path, tmp_path: Path) -> None:
    prune(llama, tmp_path / "out", "LR")
    with pytest.raises(InputError, match="finished"):
        reprune.resume(tmp_path / "out")
    with pytest.raises(InputError, match="no unfinished run"):
        reprune.resume(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no run"):
        reprune.status(tmp_path / "nowhere")


def test_another_model_or_version_is_not_gone_on_with(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    with pytest.raises(Interrupted):
        prune(model, tmp_path / "cut", "LR", InterruptAt(0))
    job_file = tmp_path / "cut" / ".reprune" / "run.json"
    before = job_file.read_text()
    job, _ = unseal(before, indent=2)
    job_file.write_text(seal({**job, "versions": {**job["versions"], "torch": "1.0"}}, indent=2))
    with pytest.raises(InputError, match=r"torch 1\.0"):
        reprune.resume(tmp_path / "cut")
    other = {**job, "versions": {**job["versions"], "reprune": "9.9"}, "folder": f"{tmp_path}/gone"}
    own = {"a-pruner": "1.0"}  # a pruner's package, which may well be installed
    for key, value, more in (("model", "gone", {}), ("key_of_9", 1, own)):
        changed = {"recipe": {**job["recipe"], key: value}, "versions": {**other["versions"], **more}}
        job_file.write_text(seal({**other, **changed}, indent=2))
        with pytest.raises(InputError, match=r"began with reprune 9\.9 \(now [^,]*\); install that again to resume"):
            reprune.resume(tmp_path / "cut")
    job_file.write_text(seal({**job, "recipe": {**job["recipe"], "epochs": 3}}, indent=2))
    with pytest.raises(InputError, match=r"run\.json: damaged \(.*epochs.*; start the run again in another folder"):
        reprune.resume(tmp_path / "cut")
    job_file.write_text(before)
    entry = Checkpoint(model).entries["model.layers.1.mlp.up_proj.weight"]
    flip_bit(entry.file, entry.offset + entry.bytes // 2)
    with pytest.raises(InputError, match=r"not the model that this run began with: model\.safetensors differs"):
        reprune.resume(tmp_path / "cut")
    flip_bit(entry.file, entry.offset + entry.bytes // 2)
    reprune.resume(tmp_path / "cut")


def test_a_run_goes_on_with_its_model_at_another_place(
    llama: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its folder was renamed, or moved to another machine: all files show that it is the same model."""
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(llama, before / "mine")
    monkeypatch.chdir(before)
    with pytest.raises(Interrupted):
        prune(Path("mine"), Path("cut"), "BR+GP", InterruptAt(0))
    before.rename(after)
    monkeypatch.chdir(tmp_path)
    message = (
        f"{before}/mine: .* no longer there; put it, or a link to it, back, or change to the folder in which mine is "
        "that model, and"
    )
    with pytest.raises(InputError, match=message):
        reprune.resume(after / "cut")
    monkeypatch.chdir(after)
    entry = Checkpoint(Path("mine")).entries["model.layers.1.mlp.up_proj.weight"]
    flip_bit(entry.file, entry.offset)
    with pytest.raises(InputError, match=r"mine: not the model that this run began with: model\.safetensors differs"):
        reprune.resume("cut")
    flip_bit(entry.file, entry.offset)
    reprune.resume("cut")
    assert files(Path("cut")) == files(whole("BR+GP"))


def test_a_model_of_the_hub_whose_place_in_the_cache_is_a_link_is_on_record_by_its_id(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = 40 * "a"
    shutil.copytree(llama, tmp_path / "elsewhere" / "snapshots" / commit)
    (tmp_path / "models--owner--tiny").symlink_to(tmp_path / "elsewhere")
    found = tmp_path / "models--owner--tiny" / "snapshots" / commit
    monkeypatch.setattr(api, "find_model", lambda *_, **__: found)
    record = prune(Path("owner/tiny"), tmp_path / "out", "LR")
    assert {key: record["model"][key] for key in ("name", "commit")} == {"name": "owner/tiny", "commit": commit}
    assert record["recipe"]["model"] == "owner/tiny"


def test_a_run_that_goes_on_from_another_working_folder_names_its_model_as_if_it_had_not(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(llama, tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        prune(model.relative_to(tmp_path), Path("cut"), "LR", InterruptAt(0))
    monkeypatch.chdir(model)
    record = reprune.resume(tmp_path / "cut")
    assert record["model"]["name"] == record["recipe"]["model"] == "mine"
    assert "\nmodel: mine\n" in f"\n{(tmp_path / 'cut' / 'recipe.yaml').read_text()}"


_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class C(LlamaConfig):
    model_type = "homemade"
class M(LlamaForCausalLM):
    config_class = C
"""


@pytest.fixture
def homemade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose code is in code.py."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = tiny.save("llama", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    maps = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "homemade", "auto_map": maps}))
    (model / "code.py").write_text(_CODE)
    return model


def test_code_that_came_with_the_model_is_copied_wherever_it_lies(homemade: Path, tmp_path: Path) -> None:
    (homemade / "code.py").rename(tmp_path / "theirs.py")
    (homemade / "code.py").symlink_to(tmp_path / "theirs.py")
    prune(homemade, tmp_path / "out", "LR", reprune.Watcher(), "trust_remote_code=true")
    assert (tmp_path / "out" / "code.py").read_text() == _CODE


def test_code_that_came_with_the_model_is_told_of_before_it_is_run_again(homemade: Path, tmp_path: Path) -> None:
    class Told(reprune.Watcher):
        def note(self, text: str) -> None:
            raise InputError(text)

    with pytest.raises(Interrupted):
        prune(homemade, tmp_path / "cut", "LR", InterruptAt(0), "trust_remote_code=true")
    for module in [name for name in sys.modules if name.startswith("transformers_modules.")]:
        del sys.modules[module]
    with pytest.raises(
        InputError, match="cut was begun with trust_remote_code: Python code that comes with the model is"
    ):
        reprune.resume(tmp_path / "cut", watcher=Told())
    assert not any(name.startswith("transformers_modules.") for name in sys.modules)


def test_code_that_came_with_the_model_and_has_changed_is_not_run(homemade: Path, tmp_path: Path) -> None:
    model, ran = homemade, tmp_path / "ran"
    with pytest.raises(Interrupted):
        prune(model, tmp_path / "cut", "LR", InterruptAt(0), "trust_remote_code=true")
    (model / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n{_CODE}")
    with pytest.raises(InputError, match=r"not the model that this run began with: code\.py differs"):
        reprune.resume(tmp_path / "cut")
    assert not ran.exists()
    (model / "config.json").unlink()
    with pytest.raises(InputError, match="the model that this run prunes is no longer there"):
        reprune.resume(tmp_path / "cut")


@pytest.mark.parametrize(
    ("name", "window", "done"),
    [("model.safetensors", 0, 1), ("tokenizer_config.json", 0, 1), ("config.json", None, 3)],
)
def test_a_model_that_changes_on_the_way_ends_the_run_which_goes_on_with_what_was_there(
    name: str, window: int | None, done: int, llama: Path, whole: Whole, tmp_path: Path
) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    before = (model / name).read_bytes()
    other = before + b"\n" if name.endswith(".json") else before[:-1] + bytes([before[-1] ^ 1])
    with pytest.raises(ChangedError, match=rf"{name}: was changed or replaced .* 'reprune resume DIR'"):
        prune(model, tmp_path / "cut", "LR", ChangeAt(model / name, other, window))
    assert reprune.status(tmp_path / "cut").windows_done == done
    with pytest.raises(InputError, match=f"not the model that this run began with: {name} differs"):
        reprune.resume(tmp_path / "cut")
    (model / name).write_bytes(before)
    reprune.resume(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(whole("LR"))


def test_a_run_that_another_process_finishes_meanwhile_is_left_as_it_is(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, opened = tmp_path / "out", api.open_decoder

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(api, "open_decoder", opened)
        reprune.resume(out)  # as if another process did
        return opened(*arguments)

    with pytest.raises(Interrupted):
        prune(llama, out, "LR", InterruptAt(0))
    monkeypatch.setattr(api, "open_decoder", slowly)
    with pytest.raises(InputError, match="out: this run is finished; there is nothing to resume"):
        reprune.resume(out)
    assert not (out / ".reprune").exists()


def test_two_processes_do_not_work_on_one_run(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", "LR", InterruptAt(0))
    with Ledger(tmp_path / "cut"), pytest.raises(InputError, match="another process"):
        reprune.resume(tmp_path / "cut")
    reprune.resume(tmp_path / "cut")


def test_a_run_that_never_began_is_no_hindrance(llama: Path, whole: Whole, tmp_path: Path) -> None:
    """A process was killed before run.json existed; a ledger without it is left over and belongs to no run."""
    left = tmp_path / "out" / ".reprune"
    left.mkdir(parents=True)
    (left / "ledger.jsonl").write_text("{}\n")
    (left / "streams").mkdir()
    prune(llama, tmp_path / "out", "LR")
    assert files(tmp_path / "out") == files(whole("LR"))
    assert not left.exists()


@pytest.mark.parametrize("begun", [False, True])
def test_a_working_folder_behind_a_link_is_refused_as_it_would_be_removed(
    llama: Path, tmp_path: Path, begun: bool
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    if begun:
        with pytest.raises(Interrupted):
            prune(llama, out, "LR", InterruptAt(0))
        (out / ".reprune").rename(other)
    else:
        out.mkdir()
        other.mkdir()
        (other / "mine.txt").write_text("mine")
    before = sorted(other.iterdir())
    (out / ".reprune").symlink_to(other)
    with pytest.raises(InputError, match=r"out/\.reprune: is a link to .*/other; a run keeps and removes its files in"):
        reprune.resume(out) if begun else prune(llama, out, "LR")
    assert sorted(other.iterdir()) == before


def test_links_within_an_unfinished_run_are_refused_as_they_would_be_written_through(
    llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", "LR", InterruptAt(0))
    (tmp_path / "mine.txt").write_text("mine, without an end of line")
    for name, other in (("staged", tmp_path), ("ledger.jsonl", tmp_path / "mine.txt")):
        link = tmp_path / "cut" / ".reprune" / name
        link.unlink(missing_ok=True)
        link.symlink_to(other)
        with pytest.raises(InputError, match=f"{name}: is a link to "):
            reprune.resume(tmp_path / "cut")
        link.unlink()
