"""The names of a model that was saved in a wrapper are reported, with a remedy that works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprune.errors import InputError, UnsupportedModelError
from reprune.model.decoder import Decoder
from reprune.model.unread import closest, way_out, wrapped
from reprune.model.whole import load_model

from .. import tiny

_WITHIN = {
    "_orig_mod.{}": r"without its wrapper \(torch\.compile, DDP\) with save_pretrained",
    "module._orig_mod.{}": r"without its wrapper \(torch\.compile, DDP\) with save_pretrained",
    "base_model.model.{}": r"\(merge_and_unload\), and save that with save_pretrained",
}


@pytest.mark.parametrize("within", _WITHIN)
def test_a_folder_of_such_names_is_refused_with_what_to_do(within: str, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({within.format(name): one for name, one in tensors.items()}, folder / "model.safetensors")
    head, matrix = within.format("lm_head.weight"), within.format("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(InputError, match=f"; they hold {head}, which nothing reads: .*{_WITHIN[within]}"):
        load_model(folder, torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match=f"; they hold {matrix}, which nothing reads: .*{_WITHIN[within]}"):
        Decoder(folder)


def test_what_peft_has_renamed_comes_closer_than_another_matrix() -> None:
    within = "base_model.model.model.layers.0.self_attn"
    stored = [f"{within}.q_proj.base_layer.weight", f"{within}.o_proj.weight", f"{within}.q_proj.lora_A.default.weight"]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert closest(name, stored) == wrapped(name, stored) == stored[0]
    assert "rename" not in way_out(stored[0], stored)


def test_a_name_as_it_is_and_another_are_no_wrappers() -> None:
    assert wrapped("lm_head.weight", ["lm_head.weight", "submodule.lm_head.weight", "score.weight"]) is None
    assert closest("lm_head.weight", []) is None


def test_a_makers_own_names_are_not_to_be_exchanged(tmp_path: Path) -> None:
    """In Transformers' format the rows of Mistral's and Llama's queries and keys have another order."""
    folder = tiny.save("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for ours, makers in (
        ("model.", ""),
        ("self_attn", "attention"),
        ("q_proj", "wq"),
        ("embed_tokens", "tok_embeddings"),
    ):
        tensors = {name.replace(ours, makers): one for name, one in tensors.items()}
    tensors = {name.replace("_proj", "").replace("norm.", "n."): one for name, one in tensors.items()}
    tensors["output.weight"] = tensors.pop("lm_head.weight")
    save_file(tensors, folder / "consolidated.safetensors")
    said = "are not in the format of Transformers: give the model in that format"
    with pytest.raises(UnsupportedModelError, match=rf"hold layers\.0\.attention\.\w+\.weight, .*: they {said}"):
        Decoder(folder)
    with pytest.raises(InputError, match=rf"the tensors of consolidated\.safetensors {said}"):
        load_model(folder, torch.device("cpu"))
    save_file({"layers.0.attention.wqkv.weight": torch.ones(3, 32)}, folder / "consolidated.safetensors")
    with pytest.raises(UnsupportedModelError, match=rf"hold layers\.0.*wqkv\.weight, .*: they {said}"):
        Decoder(folder)


def test_files_of_no_tensors_and_those_of_an_adapter_alone_are_told_apart_from_a_makers(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    added = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for tensors, said in (
        ({}, "may be incomplete"),
        ({added: torch.ones(4, 32)}, rf"hold {added}, .*: have PEFT merge"),
    ):
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UnsupportedModelError, match=said):
            Decoder(folder)


def test_tensors_that_a_process_saved_empty_are_told(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    names = load_file(folder / "model.safetensors")
    save_file({name: torch.empty(0) for name in names}, folder / "model.safetensors", {"format": "pt"})
    said = r"shape \[0\], .*; it is empty, as when a process .*: have the trainer gather the weights"
    with pytest.raises(UnsupportedModelError, match=said):
        Decoder(folder)
    with pytest.raises(InputError, match=said):
        load_model(folder, torch.device("cpu"))
