"""A ledger's files give back what was written, and are refused if they are damaged, missing, or not a ledger's."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reprune
from reprune.doors import api
from reprune.engine.ledger import Ledger
from reprune.engine.open_blocks import tensors_of
from reprune.engine.watcher import Watcher
from reprune.engine.window import PrunedBlock
from reprune.errors import ChangedError, InputError
from reprune.files.durable import sha256
from reprune.files.sealed import seal
from reprune.model.block import Block, Precision
from reprune.planning.layers import resolve_recipe
from reprune.planning.schedule import Window, windows
from tests import tiny
from tests.damage import flip_bit
from tests.engine.test_ledger import InterruptAt, Interrupted, prune


def _with_two_windows(folder: Path) -> Ledger:
    """A ledger of three windows, two of them finished; both have left block 1 open."""
    ledger = Ledger(folder)
    ledger.folder.mkdir()
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP+CR"}).model_dump(mode="json")
    job = {"recipe": recipe, "folder": "", "fingerprint": "", "windows": 3}
    nothing: dict[str, Any] = {"weights": {}, "versions": {}, "data": {}, "sketch": {}}
    ledger.begin({**job, **nothing}, torch.arange(6).view(2, 3), torch.arange(3).view(1, 3))
    for window in windows(2, 2, 1)[:2]:
        shard = folder / f"model-{window.index}.safetensors"
        shard.write_bytes(bytes([window.index] * 9))
        block = Block(1, torch.nn.Linear(2, 2), torch.device("cpu"), Precision())
        still_open = PrunedBlock(block, masks={"fc": torch.tensor([True, False])}, tokens={"fc": 7 + window.index})
        entry = {"window": {"index": window.index}, "blocks": []}
        ledger.commit(window.index, entry, {shard.name: sha256(shard)}, tensors_of([still_open]))
    return ledger


def test_a_ledger_gives_back_what_it_was_given(tmp_path: Path) -> None:
    ledger = _with_two_windows(tmp_path)
    ledger.check()
    kept = {name: samples.tolist() for name, samples in ledger.samples().items()}
    assert kept == {"calibration": [[0, 1, 2], [3, 4, 5]], "heldout": [[0, 1, 2]]}
    assert [line["window"]["index"] for line in ledger.lines()] == [0, 1]
    left = ledger.open_tensors()
    assert set(left) == {"1/weight/weight", "1/weight/bias", "1/mask/fc", "1/tokens/fc"}
    assert (left["1/mask/fc"].tolist(), int(left["1/tokens/fc"])) == ([True, False], 8)
    assert [file.name for file in ledger.folder.glob("open-*")] == ["open-00001.safetensors"], "the last alone"


def test_a_window_whose_line_is_not_written_leaves_what_the_one_before_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = _with_two_windows(tmp_path)
    before = ledger.open_tensors()
    monkeypatch.setattr("reprune.engine.ledger.append_line", Mock(side_effect=OSError))
    with pytest.raises(OSError):
        ledger.commit(2, {"window": {"index": 2}, "blocks": []}, {}, {"1/mask/fc": torch.tensor([True, True])})
    ledger.check()
    after = ledger.open_tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_model_that_changes_while_it_is_opened_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its files were compared with those that the run began with."""
    model, opened = tiny.save("llama", tmp_path / "model"), api.open_decoder
    with pytest.raises(Interrupted):
        prune(model, tmp_path / "cut", "LR", InterruptAt(0))

    def changing(*given: Any) -> Any:
        with (model / "config.json").open("a") as file:
            file.write("\n")
        return opened(*given)

    monkeypatch.setattr(api, "open_decoder", changing)
    with pytest.raises(ChangedError, match=r"config\.json: was changed or replaced"):
        reprune.resume(tmp_path / "cut")


def test_streams_that_a_killed_process_left_are_gone_before_a_resumed_run_makes_its_own(
    llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", "LR", InterruptAt(0))
    left = tmp_path / "cut" / ".reprune" / "streams" / "of-a-killed-process.stream"
    left.parent.mkdir(exist_ok=True)
    left.touch()

    class Looking(Watcher):
        def phase(self, window: Window | None, what: str) -> None:
            assert not left.exists(), "it would take room on the disk"

    reprune.resume(tmp_path / "cut", watcher=Looking())


def test_a_run_whose_folder_is_only_partly_removed_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = _with_two_windows(tmp_path)
    monkeypatch.setattr("reprune.engine.ledger.shutil.rmtree", Mock())  # killed before it removes anything
    ledger.clear()
    assert not ledger.exists


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(
    "name",
    ["model-0.safetensors", "model-1.safetensors", ".reprune/open-00001.safetensors", ".reprune/samples.safetensors"],
)
def test_a_file_that_is_damaged_or_gone_is_not_gone_on_with(tmp_path: Path, name: str, gone: bool) -> None:
    ledger = _with_two_windows(tmp_path)
    if gone:
        (tmp_path / name).unlink()
    else:
        flip_bit(tmp_path / name, 8)
    with pytest.raises(InputError, match=rf"{Path(name).name}: damaged"):
        ledger.samples()
        ledger.check()


def test_lines_that_are_left_out_or_in_another_order_are_refused(tmp_path: Path) -> None:
    ledger = _with_two_windows(tmp_path)
    path = ledger.folder / "ledger.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    for lines in (second, second + first, first + first):
        path.write_text(lines)
        with pytest.raises(InputError, match=r"ledger\.jsonl: damaged"):
            ledger.lines()
    path.write_text(seal({"window": {"index": 1}, "blocks": [], "files": {}, "open": {}}) + "\n")
    with pytest.raises(InputError, match=r"ledger\.jsonl: damaged \(line 1: window 0 was expected"):
        ledger.lines()


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | st.just(b"{}") | st.just(b"null"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_its_files_a_ledger_answers_or_refuses(tmp_path: Path, content: bytes) -> None:
    ledger = Ledger(tmp_path)
    ledger.folder.mkdir(exist_ok=True)
    for name in ("run.json", "ledger.jsonl"):
        (ledger.folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        ledger.job()
    if content.count(b"\n"):
        with pytest.raises(InputError, match=r"ledger\.jsonl: damaged \(line 1"):
            ledger.lines()
    else:
        assert ledger.lines() == []


_VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda one: st.dictionaries(st.text(), one))
_CONTENTS = st.dictionaries(st.sampled_from(["recipe", "folder", "window", "blocks", "files", "open"]), _VALUES)


@given(_CONTENTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bears_a_seal_a_ledger_refuses_what_is_no_job_and_no_line(tmp_path: Path, content: Any) -> None:
    ledger = Ledger(tmp_path)
    ledger.folder.mkdir(exist_ok=True)
    (ledger.folder / "run.json").write_text(seal(content, indent=2))
    (ledger.folder / "ledger.jsonl").write_text(seal(content) + "\n")
    for ask in (ledger.job, ledger.lines, ledger.check):
        with pytest.raises(InputError, match="damaged"):
            ask()


@pytest.mark.parametrize("name", ["../../mine.safetensors", "/mine.safetensors", "..", "staged\0.safetensors", "a.txt"])
@pytest.mark.parametrize("kind", ["files", "open"])
def test_a_line_that_names_what_is_no_file_of_weights_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    ledger = Ledger(tmp_path)
    (ledger.folder / "staged").mkdir(parents=True)
    line = {"window": {"index": 0, "distilled": True}, "blocks": [], "files": {}, "open": {}, kind: {name: ""}}
    (ledger.folder / "ledger.jsonl").write_text(seal(line) + "\n")
    for ask in (ledger.check, ledger.settle):
        with pytest.raises(InputError, match=r"ledger\.jsonl: damaged \(line 1: .* is not a file of weights"):
            ask()
