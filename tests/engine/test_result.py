"""The result's folder holds everything that belongs to the model, but no other weights than its own."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import reprune
from reprune.doors.verify import _files
from reprune.engine import result as module
from reprune.engine.result import Result
from reprune.engine.watcher import Watcher
from reprune.errors import ChangedError, InputError
from reprune.model.decoder import Decoder
from tests import tiny
from tests.engine.quick import prune
from tests.files.test_readable import deny


def finished(folder: Path, out: Path, others: Collection[str] = ("words.vocab",)) -> Path:
    """The result of a model in which nothing was changed."""
    out.mkdir()
    decoder = Decoder(folder)
    result = Result(out, decoder)
    written = result.write_outside()
    for index in range(len(decoder)):
        written |= result.write_block(index, decoder.rounded(decoder.load(index))[0])
    result.finish({}, "model: m\n", written, others)
    return out


def test_it_holds_templates_licences_and_tokenizers_and_no_other_weights(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    copied = ["additional_chat_templates/tools.jinja", "chat_template.jinja", "a.tiktoken", "a.spm", "bpe.codes"]
    copied += ["prophetnet.tokenizer", "words.vocab", "a[1].vocab", "MY_TERMS"]
    copied += ["LICENSE", "Licence.txt", "my_license.md", "LICENSE-MODEL", "COPYING", "Notice", "USE_POLICY.md"]
    others = ["license.bin", "licence.pt", "notice.safetensors", "pytorch_model.bin", "README.md", "sub/a.jinja"]
    others += ["a1.vocab", "pytorch_model.bin.index.json", "model.safetensors.index.fp16.json"]
    others += ["trainer_state.json", "all_results.json", "eval_results.json"]
    for name in copied + others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder / "license").mkdir()
    (folder / "reprune.json").write_text("of a result that is pruned once more")
    out = finished(folder, tmp_path / "out", ["words.vocab", "a[1].vocab"])
    assert {name: (out / name).read_text() for name in copied} == {name: name for name in copied}
    assert not [name for name in (*others, "license") if (out / name).exists()]
    files = json.loads((out / "reprune.json").read_text())["files"]
    assert {*copied, "tokenizer.json"} <= files.keys()
    assert files.keys() == {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()} - {
        "reprune.json"
    }
    assert _files(out, files).passed


def test_links_to_what_is_no_models_are_left_out_and_named(tmp_path: Path) -> None:
    """A downloaded model may contain such links, and the result may be published."""
    folder, base = tiny.save("llama", tmp_path / "model"), tiny.save("llama", tmp_path / "base")
    cache = tmp_path / "models--a--b" / "blobs"
    cache.mkdir(parents=True)
    (cache / "0123").write_text("cached")
    for name in ("LICENSE", "mine"):
        (tmp_path / name).write_text("mine")
    (folder / "tokenizer.json").unlink()
    links = {"tokenizer.json": base / "tokenizer.json", "notice.txt": cache / "0123", "terms.txt": "notice.txt"}
    for name, target in {**links, "LICENSE": tmp_path / "LICENSE", "a.json": tmp_path / "mine"}.items():
        (folder / name).symlink_to(target)
    (tmp_path / "link").symlink_to(folder)
    out = finished(tmp_path / "link", tmp_path / "out")
    assert all((out / name).exists() and not (out / name).is_symlink() for name in links)
    assert not (out / "LICENSE").exists()
    assert not (out / "a.json").exists()
    assert Result(out, Decoder(folder)).linked() == ([], ["LICENSE", "a.json"])


def test_what_lies_beside_a_configuration_of_something_else_is_no_models(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    for number, config in enumerate(('{"a": 1}', "not JSON", "3")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text(config)
        (tmp_path / str(number) / "mine").write_text("mine")
        (folder / f"LICENSE{number}").symlink_to(tmp_path / str(number) / "mine")
    for name, place in {"NOTICE0": "models--a--b/refs", "NOTICE1": "other/blobs"}.items():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "mine").write_text("mine")
        (folder / name).symlink_to(tmp_path / place / "mine")
    links = ["LICENSE0", "LICENSE1", "LICENSE2", "NOTICE0", "NOTICE1"]
    assert Result(tmp_path, Decoder(folder)).linked() == ([], links)


def test_a_model_that_a_link_leads_to_has_its_files_itself(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{}")
    (tmp_path / "link").symlink_to(folder)
    assert Result(tmp_path, Decoder(tmp_path / "link")).linked() == ([], [])


@pytest.mark.parametrize("method", ["open", "stat"])
def test_what_may_not_be_read_is_left_out_and_named(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not so for files that the model is loaded from: they are refused before a run or end it."""
    folder = tiny.save("llama", tmp_path / "model")
    for name in ("LICENSE", "notes.json"):
        (folder / name).write_text("{}")
        deny(monkeypatch, method, folder / name)
    said: list[str] = []
    watcher = Watcher()
    monkeypatch.setattr(watcher, "note", said.append)
    prune(folder, tmp_path / "out", pruner="magnitude", reconstruct="LR", epochs=None, lr=None, watcher=watcher)
    assert not [name for name in ("LICENSE", "notes.json") if (tmp_path / "out" / name).exists()]
    why = "is not in the result: it cannot be read; check its permissions"
    assert said == [f"LICENSE {why}", f"notes.json {why}"]
    assert reprune.verify(tmp_path / "out")
    deny(monkeypatch, "open", folder / "tokenizer.json")
    assert Result(tmp_path / "out", Decoder(folder)).unreadable() == ["LICENSE", "notes.json"]


def test_a_link_out_of_the_model_that_may_not_be_read_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said, watcher = tiny.save("llama", tmp_path / "model"), list[str](), Watcher()
    (folder / "LICENSE").symlink_to(tmp_path / "closed")
    deny(monkeypatch, "stat", folder / "LICENSE")
    monkeypatch.setattr(watcher, "note", said.append)
    prune(folder, tmp_path / "out", pruner="magnitude", reconstruct="LR", epochs=None, lr=None, watcher=watcher)
    assert said == [
        "LICENSE is not in the result: in the model's folder it is a link to a file that may not be the model's"
    ]


def test_a_link_that_leads_in_a_circle_is_left_out_and_named(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    (folder / "LICENSE").symlink_to("LICENSE")
    result = Result(tmp_path, Decoder(folder))
    assert (result.linked(), result.unreadable()) == (([], []), ["LICENSE"])


def test_what_it_is_loaded_from_is_copied_wherever_it_lies(tmp_path: Path) -> None:
    """DVC, git-annex and Nix put each file into a store, and a link to it into the folder."""
    folder, store = tiny.save("llama", tmp_path / "model"), tmp_path / "store"
    store.mkdir()
    (folder / "preprocessor_config.json").write_text("{}")
    for name in (
        "chat_template.jinja",
        "chat_template.json",
        "LICENSE",
        "a.json",
        "modeling_own.py",
        "own.py",
        "words.vocab",
    ):
        (folder / name).write_text("{}")
    for number, file in enumerate([file for file in folder.iterdir() if file.suffix != ".safetensors"]):
        file.rename(store / str(number))
        file.symlink_to(store / str(number))
    out = finished(folder, tmp_path / "out", ["words.vocab", "modeling_own.py"])
    expected = {file.name for file in folder.iterdir()} - {"model.safetensors", "LICENSE", "a.json", "own.py"}
    assert expected >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    copied = {file.name for file in out.iterdir() if file.suffix != ".safetensors"}
    assert copied == {*expected, "recipe.yaml", "reprune.json", "model.safetensors.index.json"}
    named, left_out = Result(out, Decoder(folder)).linked(["words.vocab", "modeling_own.py"])
    assert (set(named), left_out) == (expected, ["LICENSE", "a.json", "own.py"])


def test_its_weights_are_those_that_the_configuration_named(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "own.safetensors"}))
    (folder / "model.safetensors").rename(folder / "own.safetensors")
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    out = finished(folder, tmp_path / "out")
    assert json.loads((out / "config.json").read_text()) == config
    model = AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in tiny.build("llama").state_dict().items())


def _planned(sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The shards, of at most 8 bytes, for tensors outside the blocks, in a model with tensors of these sizes."""
    monkeypatch.setattr(module, "_SHARD_BYTES", 8)

    class Model:
        checkpoint = SimpleNamespace(entries={name: SimpleNamespace(bytes=size) for name, size in sizes.items()})

        def __len__(self) -> int:
            return 1

        def block_of(self, name: str) -> int | None:
            return 0 if name.startswith("block") else None

    model: Any = Model()
    return Result(Path("out"), model)._outside


def test_what_lies_outside_blocks_is_in_shards_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"a": 3, "block.a": 9, "b": 5, "c": 4, "d": 20, "e": 1, "block.b": 1, "f": 7, "g": 1}
    assert _planned(sizes, monkeypatch) == [["a", "b"], ["c"], ["d"], ["e", "f"], ["g"]]
    assert _planned({"block.a": 1}, monkeypatch) == []


def test_shards_are_numbered_and_the_index_finds_each_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARD_BYTES", 1)
    order: list[str] = []
    write_text = module.write_text
    monkeypatch.setattr(module, "write_text", lambda path, text: (order.append(path.name), write_text(path, text)))
    folder = tiny.save("llama", tmp_path / "model")
    out, dense = finished(folder, tmp_path / "out"), load_file(folder / "model.safetensors")
    outside = [name for name in dense if ".layers." not in name]
    count = 3 + len(outside)
    shards = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert sorted(file.name for file in out.glob("*.safetensors")) == shards
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in dense.values())}
    assert list(index["weight_map"]) == sorted(dense)
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(out / shard)[name], dense[name])
    assert order == ["recipe.yaml", "reprune.json", "model.safetensors.index.json"], "without an index it does not load"


def test_a_block_that_is_staged_leaves_its_shard_as_it_is(tmp_path: Path) -> None:
    decoder = Decoder(tiny.save("llama", tmp_path / "model"))
    result = Result(tmp_path / "out", decoder)
    for folder in ("out", "staged"):
        (tmp_path / folder).mkdir()
    one, other = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    kept, staged = result.write_block(0, one), result.write_block(0, other, tmp_path / "staged")
    assert kept.keys() == staged.keys()
    assert kept != staged
    assert torch.equal(result.read_block(0)["a"], one["a"])
    assert torch.equal(load_file(tmp_path / "staged" / next(iter(staged)))["a"], other["a"])


def test_a_block_that_cannot_be_read_and_a_model_that_has_changed_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a lack of memory it is not said that the block cannot be read."""
    folder = tiny.save("llama", tmp_path / "model")
    result = Result(tmp_path, Decoder(folder))
    with pytest.raises(InputError, match=r"model-00002-of-00004\.safetensors: cannot be read .*; start the run again"):
        result.read_block(1)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("reprune.engine.result.read_tensors", Mock(side_effect=MemoryError))
        result.read_block(1)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + " ")
    with pytest.raises(ChangedError, match="config"):
        result.finish({}, "", {})
