"""Files that the user may not read are reported as such, not as missing or to be downloaded again."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from reprune.doors.prepare import check_dense
from reprune.errors import InputError
from reprune.files.readable import check_readable, is_there
from reprune.model.checkpoint import Checkpoint
from reprune.model.locate import locate_model
from tests import tiny

_REFUSAL = r"cannot be read \(Permission denied\); check its permissions\.$"


def deny(monkeypatch: pytest.MonkeyPatch, method: str, denied: Path) -> None:
    """Refuse access to one file or folder, which the system would not do for root; a link itself may be looked at."""
    real = getattr(Path, method)

    def call(path: Path, *arguments: Any, **settings: Any) -> Any:
        if path == denied and settings.get("follow_symlinks", True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **settings)

    monkeypatch.setattr(Path, method, call)


@pytest.mark.parametrize("method", ["open", "stat"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_an_unreadable_file_that_a_model_is_loaded_from_is_named(
    method: str, name: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is denied where the file is a link into a folder that is closed."""
    deny(monkeypatch, method, llama / name)
    with pytest.raises(InputError, match=rf"{name}: {_REFUSAL}"):
        locate_model(str(llama))


def test_code_behind_a_link_into_a_closed_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((tiny.save("llama", tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.Own"}}))
    (tmp_path / "own.py").touch()
    deny(monkeypatch, "stat", tmp_path / "own.py")
    with pytest.raises(InputError, match=rf"own\.py: {_REFUSAL}"):
        Checkpoint(tmp_path)


def test_a_record_behind_a_link_into_a_closed_folder_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, "stat", llama / "reprune.json")
    with pytest.raises(InputError, match=rf"reprune\.json: {_REFUSAL}"):
        check_dense(llama)


def test_an_unreadable_file_that_no_model_is_loaded_from_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny.save("llama", tmp_path) / "notes.json").write_text("{}")
    deny(monkeypatch, "open", tmp_path / "notes.json")
    assert locate_model(str(tmp_path)) == tmp_path


def test_an_unreadable_index_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save("llama", tmp_path, max_shard_size="50KB")
    deny(monkeypatch, "open", tmp_path / "model.safetensors.index.json")
    with pytest.raises(InputError, match=rf"index\.json: {_REFUSAL}"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("method", ["open", "stat"])
def test_an_unreadable_file_of_weights_is_named(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save("llama", tmp_path)
    deny(monkeypatch, method, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"model\.safetensors: {_REFUSAL}"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(("method", "denied"), [("iterdir", "."), ("lstat", "config.json")])
def test_an_unreadable_folder_is_named(
    method: str, denied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One folder does not list its names, and one lists only names."""
    (tmp_path / "config.json").touch()
    deny(monkeypatch, method, tmp_path / denied)
    with pytest.raises(InputError, match=rf"{tmp_path.name}: {_REFUSAL}"):
        locate_model(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_what_is_no_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    (tiny.save("llama", tmp_path) / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: is a pipe or a device; put a file in its place\.$"):
        locate_model(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_weights_that_are_no_file_are_not_waited_for(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"{name}: is a pipe or a device"):
        Checkpoint(tmp_path)


def test_a_link_to_nothing_is_left_out(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    (tmp_path / "more.json").symlink_to("gone")
    check_readable(tmp_path / "more.json")
    assert locate_model(str(tmp_path)) == tmp_path


def test_what_cannot_be_looked_at_is_named_also_where_paths_call_it_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.14 on, these methods of paths raise no errors."""
    for method, quiet in (("exists", os.path.exists), ("is_dir", os.path.isdir), ("is_file", os.path.isfile)):
        monkeypatch.setattr(Path, method, quiet)
    name = 300 * "a"
    with pytest.raises(InputError, match=rf"{name}: cannot be read \(File name too long\); give a shorter name\.$"):
        check_readable(Path(name))
    with pytest.raises(InputError, match=r"aaa: cannot be read \(File name too long\); expected a model folder"):
        locate_model(name)


def test_a_name_that_no_system_has_is_not_there() -> None:
    assert not is_there(Path("a\0b"), "a")
