"""Tensors that a checkpoint lacks, or has in excess, are refused by name, unless nothing uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reprune.errors import InputError, UnsupportedModelError
from reprune.model.decoder import Decoder

from .. import tiny
from .conftest import embedded

FolderOf = Callable[[str], Path]


def _edited(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_old_buffers_that_the_model_no_longer_knows_are_passed_on(dtype: torch.dtype, tmp_path: Path) -> None:
    buffer = torch.tril(torch.ones(1, 1, 8, 8)).to(dtype)
    folder = _edited(tiny.save("gpt2", tmp_path), lambda tensors: tensors.update({"h.1.attn.bias": buffer}))
    decoder = Decoder(folder)
    assert torch.equal(decoder.rounded(decoder.load(1))[0]["h.1.attn.bias"], buffer)
    assert "h.1.attn.bias" not in decoder.rounded(decoder.load(0))[0]


def test_a_missing_parameter_of_a_block_is_named(tmp_path: Path) -> None:
    missing = "model.layers.1.mlp.up_proj.weight"
    folder = _edited(tiny.save("llama", tmp_path), lambda tensors: tensors.pop(missing))
    with pytest.raises(
        UnsupportedModelError, match=rf"mlp\.up_proj\.weight of block 1 .*{missing}.* download the model"
    ):
        Decoder(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.", "_orig_mod.model."),
        ("model.", "base_model.model.model."),
        ("q_proj.", "q_proj.base_layer."),
        ("model.layers.0.self_attn.", "layers.0.attention."),
    ],
)
def test_tensors_under_names_that_nothing_reads_are_named(old: str, new: str, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # an old buffer

    name = "model.layers.0.self_attn.q_proj.weight"
    folder = _edited(tiny.save("llama", tmp_path), rename)
    with pytest.raises(UnsupportedModelError, match=f"{name} or .*; they hold {name.replace(old, new)}, which nothing"):
        Decoder(folder)


def test_a_tensor_of_a_block_under_two_names_is_refused(tmp_path: Path) -> None:
    name, other = "model.layers.1.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"
    folder = _edited(tiny.save("llama", tmp_path), lambda tensors: tensors.update({other: tensors[name].clone()}))
    with pytest.raises(InputError, match=f"the tensors {other} and {name} are both {name}; remove"):
        Decoder(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"]
)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_weights_that_are_no_floats_are_refused_by_name(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = _edited(tiny.save("llama", tmp_path), lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(UnsupportedModelError, match=rf"the tensor {name} is stored as {str(dtype)[6:]}, which cannot"):
        Decoder(folder)


def test_an_expert_that_is_no_floats_is_refused_by_name(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    folder = tiny.save("qwen3_moe", tmp_path)
    _edited(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(UnsupportedModelError, match=f"the tensor {name} is stored as int8"):
        Decoder(folder)


def test_an_embedding_that_is_no_floats_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    folder = _edited(tiny.save("llama", tmp_path), lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(UnsupportedModelError, match=f"the tensor {name} is stored as int8"):
        Decoder(folder).weightless.groups(0)


@pytest.mark.parametrize("packed", ["qweight", "weight_packed"])
def test_quantized_weights_are_called_so_where_only_their_names_say_it(packed: str, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"

    def pack(tensors: dict[str, Tensor]) -> None:
        tensors[f"{name}.{packed}"] = tensors.pop(f"{name}.weight").to(torch.int32)

    with pytest.raises(UnsupportedModelError, match=rf"its weights are quantized \({name}\.{packed}\)"):
        Decoder(_edited(tiny.save("llama", tmp_path), pack))


def test_a_missing_embedding_is_named(tmp_path: Path, ids: Tensor) -> None:
    missing = "model.embed_tokens.weight"
    folder = _edited(tiny.save("llama", tmp_path), lambda tensors: tensors.pop(missing))
    with pytest.raises(UnsupportedModelError, match=missing):
        embedded(Decoder(folder), ids)
    with pytest.raises(UnsupportedModelError, match=missing):
        Decoder(folder).weightless.groups(0)


@pytest.mark.parametrize("name", [*tiny.CONFIGS, *tiny.PARALLEL, *tiny.MIXTURES, *tiny.JOINED])
def test_a_whole_model_lacks_nothing(name: str, folder_of: FolderOf) -> None:
    assert Decoder(folder_of(name)).lacking == []


def test_what_a_model_lacks_outside_its_blocks_is_known(tmp_path: Path) -> None:
    missing = ["model.norm.weight", "lm_head.weight"]
    folder = _edited(tiny.save("llama", tmp_path), lambda tensors: [tensors.pop(name) for name in missing])
    decoder = Decoder(folder)
    assert decoder.lacking == missing
    decoder.weightless.groups(0)
    with pytest.raises(UnsupportedModelError, match=missing[0]):
        decoder.check_predicts()


def test_a_tensor_of_another_shape_than_the_configuration_says_is_refused_by_name(tmp_path: Path) -> None:
    wide = {"model.layers.1.mlp.up_proj.weight": torch.zeros(65, 32)}
    folder = _edited(tiny.save("llama", tmp_path), lambda tensors: tensors.update(wide))
    with pytest.raises(InputError, match=r"mlp\.up_proj\.weight"):
        Decoder(folder).load(1)


def test_an_embedding_of_another_shape_than_the_configuration_says_is_refused_by_name(
    tmp_path: Path, ids: Tensor
) -> None:
    wide = {"model.embed_tokens.weight": torch.zeros(tiny.VOCABULARY, 33)}
    folder = _edited(tiny.save("llama", tmp_path), lambda tensors: tensors.update(wide))
    with pytest.raises(InputError, match="embed_tokens"):
        embedded(Decoder(folder), ids)
