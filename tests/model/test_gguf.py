"""A converted GGUF file is cached by what decides it, where the user says, and found again by any path to it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from reprune.errors import InputError
from reprune.files.cache import cache_root
from reprune.model import gguf as module
from reprune.model.gguf import check_release, convert_gguf, converted_folder, is_whole
from tests import tiny
from tests.doors.demo.test_model import write_gguf


def test_a_cache_may_be_named_from_here_and_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, expected in (("kept", tmp_path / "kept"), ("~/kept", tmp_path / "home" / "kept")):
        monkeypatch.setenv("REPRUNE_CACHE", given)
        assert cache_root() == expected


def test_a_folder_has_the_name_of_the_file_its_content_and_the_ways_to_convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path))
    sha256 = "0123456789abcdef" * 4
    names = []
    for number in (3, 4):
        monkeypatch.setattr(module, "_CONVERSION", number)
        for version in ("5.0.0", "6.1.0"):
            monkeypatch.setattr("transformers.__version__", version)
            names.append(converted_folder("a.b.gguf", sha256).relative_to(tmp_path).as_posix())
    assert names == [f"a.b-0123456789abcdef-{way}" for way in ("3-tf5", "3-tf6", "4-tf5", "4-tf6")]


def test_a_folder_is_looked_for_by_the_sha256_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "is_whole", lambda folder: True)
    (tmp_path / "a.gguf").write_bytes(b"GGUF and more")
    found = convert_gguf(tmp_path / "a.gguf", lambda said: None)
    assert found == converted_folder("a.gguf", hashlib.sha256(b"GGUF and more").hexdigest())


def test_a_release_that_loses_bos_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF and more")
    for version in ("5.16.0", "5.22.2"):
        monkeypatch.setattr("transformers.__version__", version)
        with pytest.raises(InputError, match=rf'a\.gguf: .* 5\.23 or newer \(this is {version}.*"reprune\[gguf\]", or'):
            convert_gguf(tmp_path / "a.gguf", pytest.fail)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("version", ["5.23.0", "5.24.0.dev0", "6.0.0"])
def test_a_release_that_keeps_it_is_not(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", version)
    check_release(Path("a.gguf"))


def test_a_file_may_be_given_from_here_and_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_gguf(tmp_path / "blob")
    Path("tiny.gguf").symlink_to("../blob")
    assert is_whole(convert_gguf(Path("tiny.gguf"), lambda said: None))


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tok*"])
def test_a_model_that_lacks_a_part_is_not_whole(lost: str, tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    assert is_whole(tmp_path)
    for file in tmp_path.glob(lost):
        file.unlink()
    assert not is_whole(tmp_path)


@pytest.mark.parametrize("name", ["tekken.json", "vocab.json", "vocab.txt", "spiece.model"])
def test_a_model_whose_tokenizer_has_files_of_other_names_is_whole(name: str, tmp_path: Path) -> None:
    """Mistral Small 3.2, for example, has tekken.json alone."""
    tiny.save("llama", tmp_path)
    for file in tmp_path.glob("tok*"):
        file.unlink()
    (tmp_path / name).touch()
    assert is_whole(tmp_path)
