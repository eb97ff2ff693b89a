"""A folder's tensors are found whatever files they are in, and incomplete files are refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reprune.errors import ChangedError, InputError, UnsupportedModelError
from reprune.files.durable import sha256
from reprune.model import checkpoint
from reprune.model.checkpoint import Checkpoint, differing

from .. import tiny
from ..damage import add_unknown, flip_bit

FolderOf = Callable[[str], Path]

_OF_SCALES = [torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []  # since PyTorch 2.7


def _tensors() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(3, 4, generator=random),
        "a": torch.randn(5, generator=random).bfloat16(),
        "scalar": torch.tensor(3),
        "mask": torch.tensor([True, False]),
    }


def _folder(folder: Path, **files: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def _index(folder: Path, weight_map: Any) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_every_tensor_is_read_by_name_in_its_own_dtype(tmp_path: Path) -> None:
    checkpoint = Checkpoint(_folder(tmp_path, model=_tensors()))
    assert list(checkpoint.entries) == ["a", "b", "mask", "scalar"]
    for name, tensor in _tensors().items():
        entry, found = checkpoint.entries[name], checkpoint.tensor(name)
        assert torch.equal(found, tensor)
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), tensor.dtype) == (tuple(found.shape), found.dtype)
        assert entry.bytes == tensor.numel() * tensor.element_size()
    assert checkpoint.bytes == 48 + 10 + 8 + 2


def test_the_place_of_a_tensor_is_where_its_bytes_are(tmp_path: Path) -> None:
    checkpoint = Checkpoint(_folder(tmp_path, model=_tensors()))
    entry = checkpoint.entries["b"]
    data = entry.file.read_bytes()[entry.offset : entry.offset + entry.bytes]
    assert data == _tensors()["b"].numpy().tobytes()


def test_a_model_in_many_files_is_one(tmp_path: Path, folder_of: FolderOf) -> None:
    whole = Checkpoint(folder_of("llama"))
    parts = Checkpoint(tiny.save("llama", tmp_path, max_shard_size="20KB"))
    assert len({entry.file for entry in parts.entries.values()}) > 3
    assert list(parts.entries) == list(whole.entries)
    assert parts.bytes == whole.bytes
    assert all(torch.equal(parts.tensor(name), whole.tensor(name)) for name in whole.entries)


def test_files_that_the_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path, one={"a": torch.ones(2)}, other={"a": torch.zeros(3)})
    assert Checkpoint(_index(folder, {"a": "one.safetensors"})).entries["a"].shape == (2,)


def test_the_one_file_goes_before_an_index_as_transformers_has_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model={"a": torch.ones(2)}, other={"a": torch.zeros(3)})
    assert Checkpoint(_index(folder, {"a": "other.safetensors"})).entries["a"].shape == (2,)


def test_a_tensor_that_is_in_two_files_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = _folder(tmp_path, one={"a": torch.ones(2)}, two={"a": torch.zeros(2), "b": torch.ones(1)})
    with pytest.raises(InputError, match=r"the tensor a is in both one\.safetensors and two\.safetensors"):
        Checkpoint(folder)


def test_without_an_index_files_called_model_are_read_before_any_others(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model={"a": torch.ones(2)}, consolidated={"a": torch.zeros(3)})
    assert Checkpoint(folder).entries["a"].shape == (2,)
    other = _folder(tmp_path / "other", weights={"a": torch.ones(2)})
    assert list(Checkpoint(other).entries) == ["a"]


def test_the_weights_that_the_configuration_names_are_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model={"a": torch.ones(1)}, other={"a": torch.ones(2)}, part={"b": torch.ones(3)})
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": "part.safetensors"}}))
    for named, found in (("other.safetensors", ("a", 2)), ("x.safetensors.index.json", ("b", 3)), (None, ("a", 1))):
        (folder / "config.json").write_text(json.dumps({"transformers_weights": named}))
        assert [(name, *entry.shape) for name, entry in Checkpoint(folder).entries.items()] == [found]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("gone.safetensors", r"gone\.safetensors is missing"),
        ("gone.safetensors.index.json", "not a safetensors index"),
        ("../model.safetensors", "expected a .* file of the folder"),
        ("pytorch_model.bin", "expected a .* file of the folder"),
        (3, "expected a .* file of the folder"),
    ],
)
def test_weights_that_the_configuration_names_and_are_not_there_are_refused(
    named: object, message: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, model=_tensors())
    (folder / "config.json").write_text(json.dumps({"transformers_weights": named}))
    with pytest.raises(InputError, match=message):
        Checkpoint(folder)


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/out.safetensors", "a/../../out.safetensors"])
def test_an_index_that_names_a_file_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "out.safetensors")
    folder = _index(_folder(tmp_path / "model"), {"a": name})
    with pytest.raises(InputError, match=rf"names the file {name}, outside the model folder"):
        Checkpoint(folder)


@pytest.mark.parametrize("weight_map", [None, [], "model.safetensors", 3])
def test_an_index_without_a_map_of_weights_is_refused(weight_map: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a safetensors index with a weight_map"):
        Checkpoint(_index(_folder(tmp_path, part=_tensors()), weight_map))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metadata": {}}'])
def test_an_index_that_cannot_be_read_is_refused(content: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, part=_tensors())
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match="not a safetensors index with a weight_map"):
        Checkpoint(folder)


def test_a_file_that_the_index_names_and_is_not_there_is_named(tmp_path: Path) -> None:
    files = {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}
    folder = _index(_folder(tmp_path, one={"a": torch.ones(2)}), files)
    with pytest.raises(InputError, match=r"three\.safetensors is missing \(2 of 3 are\)"):
        Checkpoint(folder)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match=r"expected \*\.safetensors files, found none"):
        Checkpoint(folder)


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused_by_name(left: int, tmp_path: Path) -> None:
    file = _folder(tmp_path, model=_tensors()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(InputError, match=r"model\.safetensors: not a whole safetensors file"):
        Checkpoint(tmp_path)


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    file = _folder(tmp_path) / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match=r"model\.safetensors: not a whole safetensors file"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.uint32, *_OF_SCALES])
def test_a_tensor_may_be_of_numbers_in_which_no_weight_is(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.ones(2).to(dtype)
    checkpoint = Checkpoint(_folder(tmp_path, model={"a": tensor}))
    assert checkpoint.entries["a"].dtype == dtype
    assert checkpoint.entries["a"].bytes == tensor.nbytes
    assert checkpoint.tensor("a").tolist() == tensor.tolist()


def test_numbers_that_pytorch_does_not_know_are_refused_by_name_where_they_are_wanted(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "models--owner--tiny" / "snapshots" / (40 * "0"), model=_tensors())
    add_unknown(folder / "model.safetensors", "old")
    checkpoint = Checkpoint(folder)
    assert (checkpoint.entries["old"].dtype, checkpoint.entries["old"].bytes) == ("F6_E2M3", 3)
    with pytest.raises(UnsupportedModelError, match=r"^owner/tiny: the tensor old is stored as F6_E2M3"):
        checkpoint.dtype("old")
    assert checkpoint.dtype("a") == torch.bfloat16


def test_a_fingerprint_stays_the_same_wherever_the_model_lies(tmp_path: Path, folder_of: FolderOf) -> None:
    copied = shutil.copytree(folder_of("llama"), tmp_path / "copy")
    (copied / "README.md").write_text("a note")
    first = Checkpoint(folder_of("llama")).fingerprint()
    assert Checkpoint(copied).fingerprint() == first
    assert len(first) == 64


@pytest.mark.parametrize("end", ["first", "last"])
@pytest.mark.parametrize("name", ["a", "b", "long", "scalar"])
def test_one_byte_at_an_end_of_any_tensor_changes_the_fingerprint(end: str, name: str, tmp_path: Path) -> None:
    tensors = _tensors() | {"before": torch.arange(5000), "long": torch.arange(5000)}
    checkpoint = Checkpoint(_folder(tmp_path, model=tensors))
    before = checkpoint.fingerprint()
    entry = checkpoint.entries[name]
    flip_bit(entry.file, entry.offset + (0 if end == "first" else entry.bytes - 1))
    assert Checkpoint(tmp_path).fingerprint() != before


def test_the_digests_are_those_of_all_files_that_make_the_model(tmp_path: Path) -> None:
    folder = _folder(tmp_path, **{"model-00001-of-00002": {"first": torch.ones(3)}, "model-00002-of-00002": _tensors()})
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "modeling_own.Config"}}')
    (folder / "modeling_own.py").write_text("# code")
    (folder / "README.md").write_text("not of the model")
    names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "modeling_own.py"]
    expected = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    assert Checkpoint(folder).digests() == expected


def test_the_digests_are_those_of_the_tokenizers_files_too(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model=_tensors())
    names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"]
    names += ["tokenizer.model", "own.tiktoken", "prophetnet.tokenizer", "chat_template.jinja"]
    others = ["counts_of_tokens.json", "my_vocab.json", "vocabulary.txt", "analyse.py"]  # code, and what it might read
    for name in (*names, *others, "generation_config.json", "results.json", "notes.txt"):
        (folder / name).write_text("{}")
    assert set(Checkpoint(folder).digests()) == {"config.json", "model.safetensors", *names}
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["analyse.Words", null]}}')
    assert set(Checkpoint(folder).digests()) == {"config.json", "model.safetensors", *names, *others}


@pytest.mark.parametrize("name", ["b", "first"])
def test_a_tensor_of_another_file_than_was_opened_is_refused(name: str, tmp_path: Path) -> None:
    """It is refused whether or not the new file has a tensor of that name."""
    checkpoint = Checkpoint(_folder(tmp_path, model={"first": torch.ones(3)} | _tensors()))
    save_file(_tensors(), tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "model.safetensors")
    with pytest.raises(ChangedError, match=r"model\.safetensors: was changed or replaced"):
        checkpoint.tensor(name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "modeling_own.py", "tokenizer_config.json"])
def test_a_change_of_any_file_of_the_model_is_noticed(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, model=_tensors())
    for beside in ("modeling_own.py", "tokenizer_config.json", "results.json"):
        (folder / beside).write_text('{"auto_map": {}}')
    checkpoint = Checkpoint(folder)
    (folder / "results.json").write_text("[1]")
    (folder / "new.json").write_text("{}")
    checkpoint.check_unchanged()
    os.utime(folder / name, ns=(0, 0))
    with pytest.raises(ChangedError, match=name):
        checkpoint.check_unchanged()


def test_digests_in_the_background_stop_where_nobody_waits_for_them(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model=_tensors())
    checkpoint = Checkpoint(folder)
    with checkpoint.digesting() as digests:
        assert digests() == checkpoint.digests()
    calls: list[str] = []
    with pytest.raises(InputError, match="a text is missing"), checkpoint.digesting():
        raise InputError("a text is missing")
    file = folder / "model.safetensors"
    with file.open("ab") as stream:
        stream.truncate(2**26)  # more than is read at a time

    def stopped() -> bool:
        calls.append("asked")
        return len(calls) > 2

    assert sha256(file, stopped) != sha256(file)
    assert len(calls) == 3


def test_a_weight_file_that_is_gone_is_told_by_who_waits(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model=_tensors())
    checkpoint = Checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with checkpoint.digesting() as digests, pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        digests()


def test_another_configuration_name_shape_or_dtype_changes_the_fingerprint(tmp_path: Path) -> None:
    zeros = torch.zeros(2, 6)
    made = [
        _folder(tmp_path / "plain", model={"a": zeros}),
        _folder(tmp_path / "name", model={"b": zeros}),
        _folder(tmp_path / "shape", model={"a": zeros.reshape(3, 4)}),
        _folder(tmp_path / "dtype", model={"a": zeros.int()}),
        _folder(tmp_path / "config", model={"a": zeros}),
    ]
    (made[-1] / "config.json").write_text('{"model_type": "other"}')
    assert len({Checkpoint(folder).fingerprint() for folder in made}) == len(made)


def test_a_file_that_the_system_does_not_map_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is a file of 93 GB on a machine with 24 GB."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "unable to mmap 93405723800 bytes from file <model.safetensors>: Cannot allocate memory (12)"
        )

    monkeypatch.setattr(checkpoint, "safe_open", refuse)
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be mapped .* 93405723800 bytes .*max_shard_size"):
        Checkpoint(_folder(tmp_path, model=_tensors()))


def test_without_an_index_the_files_of_the_usual_name_are_the_models(tmp_path: Path) -> None:
    parts = {"model-00001-of-00002": {"a": torch.ones(1)}, "model-00002-of-00002": {"b": torch.ones(2)}}
    folder = _folder(tmp_path / "model", **parts, other={"a": torch.ones(3), "c": torch.ones(4)})
    assert {name: entry.shape for name, entry in Checkpoint(folder).entries.items()} == {"a": (1,), "b": (2,)}
    assert Checkpoint(_folder(tmp_path / "named", other={"c": torch.ones(4)})).entries.keys() == {"c"}


def test_files_of_two_models_are_told_apart_by_what_is_read_of_them() -> None:
    whole, parts = {"tokenizer.json": "01"}, {"vocab.json": "23", "merges.txt": "45"}
    assert differing(whole, whole | parts) == differing(parts, {**parts}) == set()
    assert differing(parts, {"vocab.json": "67"}) == {"vocab.json", "merges.txt"}
    assert differing(parts, whole) == differing({}, whole | parts) == {"tokenizer.json"}
