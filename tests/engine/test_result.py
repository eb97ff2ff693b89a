"""The result's folder holds all that belongs to the model but for weights that are not its own."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from reprune.doors.verify import _files
from reprune.engine.result import Result
from reprune.model.decoder import Decoder
from tests import tiny


def finished(folder: Path, out: Path, others: Collection[str] = ("words.vocab",)) -> Path:
    """A result of a model of which nothing was changed."""
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
    copied += ["prophetnet.tokenizer", "words.vocab"]
    copied += ["LICENSE", "Licence.txt", "my_license.md", "LICENSE-MODEL", "COPYING", "Notice", "USE_POLICY.md"]
    others = ["license.bin", "licence.pt", "notice.safetensors", "pytorch_model.bin", "README.md", "sub/a.jinja"]
    for name in copied + others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder / "license").mkdir()
    out = finished(folder, tmp_path / "out")
    assert {name: (out / name).read_text() for name in copied} == {name: name for name in copied}
    assert not [name for name in (*others, "license") if (out / name).exists()]
    files = json.loads((out / "reprune.json").read_text())["files"]
    assert {*copied, "tokenizer.json"} <= files.keys()
    assert _files(out, files).passed


def test_links_to_what_is_no_models_are_left_out_and_named(tmp_path: Path) -> None:
    """A model from elsewhere may have them; the result may be given to others."""
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


def test_what_it_is_loaded_from_is_copied_wherever_it_lies(tmp_path: Path) -> None:
    """DVC, git-annex and Nix lay each file into a store and a link into the folder."""
    folder, store = tiny.save("llama", tmp_path / "model"), tmp_path / "store"
    store.mkdir()
    for name in ("chat_template.jinja", "LICENSE", "a.json", "modeling_own.py", "own.py", "words.vocab"):
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
