"""Only the needed files of a Hub model are downloaded, at the given revision; a tokenizer needs no weights."""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from reprune.errors import InputError
from reprune.model import hub
from reprune.model.hub import late_bars
from reprune.model.locate import locate_headers, locate_model
from reprune.model.snapshots import hub_commit
from tests import tiny

SHA = "0123456789abcdef" * 2 + "01234567"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of the Hub's library, which has the model in `tmp_path / SHA`."""
    found: list[dict[str, Any]] = []

    def fetch(model: str, **options: Any) -> str:
        found.append({"model": model, **options})
        return str(tmp_path / SHA)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return found


def _fetched(files: list[str], options: dict[str, Any]) -> set[str]:
    utils: Any = huggingface_hub.utils
    patterns = {name: options[name] for name in ("allow_patterns", "ignore_patterns")}
    return set(utils.filter_repo_objects(files, **patterns))


def test_weights_are_fetched_only_where_they_are_needed_and_not_here(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save("llama", tmp_path / SHA)
    listed: list[str] = []
    siblings: list[Any] = []

    def info(_: Any, model: str, revision: str) -> Any:
        listed.append(f"{model}@{revision}")
        return SimpleNamespace(siblings=siblings)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", info)
    beside = {"config.json", "tokenizer.json"}
    others = ["model.fp16.safetensors", "consolidated.safetensors", "onnx/model.safetensors", "model-2.safetensors"]
    every = [*beside, "model.safetensors", *others]
    siblings += [SimpleNamespace(rfilename=name) for name in every]
    for weights in (True, False):
        locate_model("owner/tiny@v1", weights=weights)
        (one,) = asked
        assert (one["model"], one["revision"]) == ("owner/tiny", "v1")
        assert _fetched(every, one) == beside
        asked.clear()
    assert listed == [], "it is only asked where something is not there"
    (tmp_path / SHA / "model.safetensors").unlink()
    locate_model("owner/tiny@v1", weights=False)
    assert len(asked) == 1
    locate_model("owner/tiny@v1")
    *_, one = asked
    assert (one["model"], one["revision"]) == ("owner/tiny", SHA)
    assert _fetched(every, one) == {"model.safetensors"}
    assert listed == [f"owner/tiny@{SHA}"]


def test_neither_pickles_nor_second_copies_are_downloaded(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["config.json", "model-00001-of-00002.safetensors", "generation_config.json", "merges.txt"]
    wanted += ["tokenizer.model", "chat_template.jinja", "modeling_own.py", "additional_chat_templates/tools.jinja"]
    wanted += ["LICENSE", "LICENSE-MODEL", "Notice.txt", "COPYING", "USE_POLICY.md"]
    wanted += ["qwen.tiktoken", "a.spm", "bpe.codes", "prophetnet.tokenizer"]
    others = ["pytorch_model.bin", "pytorch_model.bin.index.json.pkl", "model.gguf", "consolidated.safetensors"]
    others += ["model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors", "onnx/model.safetensors", "a.pth"]
    others += ["license.bin", "LICENSE.pkl", "README.md"]
    (tmp_path / SHA).mkdir()
    (tmp_path / SHA / "config.json").write_text(json.dumps(LLAMA))
    found = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in wanted + others])
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda _, model, revision: found)
    locate_model("owner/tiny")
    assert set().union(*(_fetched(wanted + others, one) for one in asked)) == {*wanted}


@pytest.mark.parametrize(
    ("here", "there", "fetched"),
    [
        ("one.safetensors", "two.safetensors", "two.safetensors"),
        ("model-1-of-2.safetensors", "model-2-of-2.safetensors", "model-2-of-2.safetensors"),
        ("model.fp16.safetensors", "model.safetensors", "model.safetensors"),
        ("consolidated.safetensors", "model.safetensors", "model.safetensors"),
        ("model-1.safetensors", "other.safetensors", None),
    ],
)
def test_weights_that_no_index_names_are_completed_where_only_some_are_here(
    here: str,
    there: str,
    fetched: str | None,
    asked: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A download may have been interrupted, or another program may have fetched another form of the weights."""
    folder = tiny.save("llama", tmp_path / SHA)
    (folder / "model.safetensors").rename(folder / here)
    found = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in (here, there)])
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda _, model, revision: found)
    (_, away) = locate_headers("owner/tiny")
    assert (away and away.names) == (fetched and {fetched})
    locate_model("owner/tiny")
    every = [_fetched([here, there], one) for one in asked]
    assert every == [set(), set(), *([{fetched}] if fetched else [])]


def test_weights_that_no_index_names_are_read_as_they_are_here_where_nothing_can_be_asked(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save("llama", tmp_path / SHA)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")

    def refuse(*_: Any, **__: Any) -> Any:
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    assert locate_headers("owner/tiny") == (folder, None)
    assert locate_model("owner/tiny") == folder
    assert len(asked) == 2


def test_a_name_of_a_file_is_no_pattern(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SHA).mkdir()
    (tmp_path / SHA / "config.json").write_text(json.dumps({**LLAMA, "transformers_weights": "[a].safetensors"}))
    every = ["[a].safetensors", "a.safetensors"]
    found = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in every])
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda _, model, revision: found)
    locate_model("owner/tiny")
    assert _fetched(every, asked[-1]) == {"[a].safetensors"}


def test_of_what_the_library_warns_of_only_that_nothing_fits_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("huggingface_hub._snapshot_download")
    said: list[str] = []
    monkeypatch.setattr(logger, "callHandlers", lambda record: said.append(record.getMessage()))

    def fetch(*_: Any, **__: Any) -> str:
        logger.warning("No files matched the patterns.")
        logger.warning("The disk is slow.")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    tiny.save("llama", tmp_path)
    assert locate_model("owner/tiny") == tmp_path
    assert said == ["The disk is slow."]
    assert not logger.filters


@pytest.mark.parametrize(("seconds", "shown"), [(1000.0, False), (0.0, True)])
def test_a_bar_is_shown_only_for_what_takes_a_while(
    seconds: float, shown: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "_SECONDS", seconds)
    with late_bars() as bars:
        bar = bars(desc="Fetching", total=2)
        bar.update(2)
        bar.set_description("Complete")
    assert ("Complete" in capfd.readouterr().err) == shown


@pytest.mark.parametrize("change", [lambda bar: bar.update(2), lambda bar: bar.set_description("Complete")])
def test_a_bar_that_is_left_open_ends_with_a_line_and_is_not_shown_again(
    change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "_SECONDS", 0.05)
    with late_bars() as bars:
        left = bars(desc="Fetching", total=2)
        time.sleep(0.12)
        change(left)
    assert capfd.readouterr().err.endswith("\n")
    del left
    gc.collect()
    assert capfd.readouterr().err == ""


def test_no_bar_is_shown_where_standard_error_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    with late_bars() as bars:
        bars(desc="Fetching", total=2, disable=None).update(2)  # as the library begins bars for a terminal


def test_a_folder_without_weights_is_taken_where_none_are_needed(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert locate_model(str(tmp_path), weights=False) == tmp_path
    (tmp_path / "model.safetensors").unlink()
    assert locate_model(str(tmp_path), weights=False) == tmp_path
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="is a PEFT adapter"):
        locate_model(str(tmp_path), weights=False)


def test_a_cached_model_whose_weights_are_not_whole_is_taken_where_none_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save("llama", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    error: Any = errors.LocalEntryNotFoundError("offline")
    error.snapshot_path = str(tmp_path)

    def fetch(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert locate_model("owner/tiny", weights=False) == tmp_path
    with pytest.raises(InputError, match="nor is it whole"):
        locate_model("owner/tiny")


def test_a_revision_is_meant_also_where_the_library_is_asked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save("llama", tmp_path)

    def fetch(model: str, *, revision: str, local_files_only: bool = False, **_: Any) -> str:
        if not local_files_only:
            raise errors.OfflineModeIsEnabled("as release 2.1 does for a commit")
        assert (model, revision) == ("owner/tiny", SHA)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert locate_model(f"owner/tiny@{SHA}") == tmp_path


def test_what_else_there_is_is_looked_up_at_the_commit_that_was_fetched(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SHA).mkdir()
    (tmp_path / SHA / "config.json").write_text(json.dumps(LLAMA))
    found = {SHA: SimpleNamespace(siblings=[SimpleNamespace(rfilename="pytorch_model.bin")])}
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda _, model, revision: found[revision])
    with pytest.raises(InputError, match=r"owner/tiny: its weights are pickles \(pytorch_model\.bin\)"):
        locate_model("owner/tiny")
    assert len(asked) == 1


def test_a_commit_is_known_by_the_whole_name_of_a_folder_of_the_cache(tmp_path: Path) -> None:
    assert hub_commit(tmp_path / "snapshots" / SHA) == SHA
    assert hub_commit(tmp_path / SHA) is None
    assert hub_commit(tmp_path / "snapshots" / f"{SHA}0") is None


def test_endings_are_those_of_files_whatever_their_case(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        locate_model("owner/MODEL.GGUF")
    (tmp_path / "A.GGUF").touch()
    with pytest.raises(InputError, match=r"holds its model only as GGUF; give the path of the file: .*/A\.GGUF"):
        locate_model(str(tmp_path))


def test_an_index_of_pickles_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no \*\.safetensors files"):
        locate_model(str(tmp_path))
