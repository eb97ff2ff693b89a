"""Tensors in another form than the model's parameters are converted, and back, by Transformers' own rules."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from reprune.errors import UnsupportedModelError
from reprune.model.conversion import Conversion, Layout
from reprune.model.decoder import Decoder

from .. import tiny
from .conftest import embedded

FolderOf = Callable[[str], Path]

_TEXT: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_a_block_is_made_of_the_tensors_that_transformers_makes_it_of(folder_of: FolderOf) -> None:
    decoder = Decoder(folder_of("mixtral"))
    model = tf.AutoModelForCausalLM.from_pretrained(folder_of("mixtral"), dtype=torch.float32)
    for index in range(len(decoder)):
        state = decoder.load(index).module.state_dict()
        expected = model.model.layers[index].state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_experts_beyond_the_tenth_keep_their_order(tmp_path: Path) -> None:
    common = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    tf.MixtralForCausalLM(tf.MixtralConfig(**common, **heads, num_local_experts=12)).save_pretrained(tmp_path)
    expected = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).model.layers[0].state_dict()
    decoder = Decoder(tmp_path)
    assert all(torch.equal(one, expected[name]) for name, one in decoder.load(0).module.state_dict().items())
    stored, _ = decoder.rounded(decoder.load(0))
    assert all(torch.equal(one, decoder.checkpoint.tensor(name)) for name, one in stored.items())


def test_experts_that_are_turned_when_they_are_loaded_are_turned_back(tmp_path: Path) -> None:
    """Those of Qwen3-VL-MoE lie on the Hub the other way round than in the model."""
    text = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 24}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 4, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}
    config = tf.Qwen3VLMoeConfig(text_config=text, vision_config=vision | {"num_position_embeddings": 16})
    tf.Qwen3VLMoeForConditionalGeneration(config).save_pretrained(tmp_path)
    _assert_kept(tmp_path, tf.Qwen3VLMoeForConditionalGeneration)
    _edit(tmp_path, lambda stored: {name: one.mT if ".experts." in name else one for name, one in stored.items()})
    _assert_kept(tmp_path, tf.Qwen3VLMoeForConditionalGeneration)


def test_parts_of_a_tensor_that_are_not_equally_long_are_told_apart_again(tmp_path: Path) -> None:
    """In a convolution of OLMo Hybrid, values have twice the rows of keys."""
    config = tf.OlmoHybridConfig(**_TEXT, layer_types=["linear_attention", "full_attention"], pad_token_id=0)
    model = tf.OlmoHybridForCausalLM(config)
    model.save_pretrained(tmp_path, save_original_format=False)

    def apart(stored: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "model.layers.0.linear_attn.conv1d.weight"
        parts = stored.pop(name).split([24, 24, 48])
        return stored | {name.replace("conv1d", f"{of}_conv1d"): part for of, part in zip("qkv", parts, strict=True)}

    _edit(tmp_path, apart)
    _assert_kept(tmp_path, type(model))


@pytest.mark.skipif(not hasattr(tf, "Molmo2Config"), reason="this Transformers has no Molmo 2")
def test_words_in_a_tensor_of_their_own_are_told_apart_again(tmp_path: Path) -> None:
    """Molmo 2 has few of them, and Transformers would cut its embedding into halves."""
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8}
    adapter = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    config = tf.Molmo2Config(
        text_config={**_TEXT, "num_key_value_heads": 2, "head_dim": 8, "additional_vocab_size": 8},
        vision_config={**vision, "num_key_value_heads": 4, "intermediate_size": 64, "num_position_embeddings": 4},
        adapter_config={**adapter, "intermediate_size": 64, "text_hidden_size": 32, "vision_feature_layer": [0]},
    )
    model = tf.Molmo2ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)

    def apart(stored: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [name for name in sorted(stored) if "wte." in name]  # embedding, new_embedding
        parts = torch.cat([stored[name] for name in names]).split([tiny.VOCABULARY, 8])
        return stored | dict(zip(names, parts, strict=True))

    _edit(tmp_path, apart)
    _assert_kept(tmp_path, type(model))
    ids = torch.arange(tiny.VOCABULARY - 8, tiny.VOCABULARY + 8)[None]
    assert torch.equal(embedded(Decoder(tmp_path), ids), model.get_input_embeddings()(ids).detach())


def _edit(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    stored = {name: one.contiguous() for name, one in edit(load_file(file)).items()}
    save_file(stored, file, metadata={"format": "pt"})


def _assert_kept(folder: Path, kind: Any) -> None:
    """Assert that blocks are what Transformers makes of the tensors, and are stored as they were."""
    decoder = Decoder(folder)
    whole = kind.from_pretrained(folder, dtype=torch.float32)
    for index, expected in enumerate(whole.get_submodule(decoder.skeleton.blocks_path)):
        block = decoder.load(index)
        found = block.module.state_dict()
        assert all(torch.equal(found[name], one) for name, one in expected.state_dict().items())
        stored, _ = decoder.rounded(block)
        assert stored.keys() == {name for name in decoder.checkpoint.entries if decoder.block_of(name) == index}
        assert all(torch.equal(decoder.checkpoint.tensor(name), one) for name, one in stored.items())


def test_a_tensor_that_a_rule_would_give_a_name_that_the_model_lacks_keeps_its_own(folder_of: FolderOf) -> None:
    """As the last norm of DeepSeek V4, saved by Transformers, by a rule for the names of the original."""
    decoder = Decoder(folder_of("deepseek_v4"))
    assert "model.norm.weight" in decoder.used
    assert not decoder.lacking


def test_what_is_not_turned_back_into_what_it_was_is_refused(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Layout.save

    def cut(self: Layout, conversion: Any, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        made = whole(self, conversion, parameters)
        return dict(list(made.items())[1:])

    monkeypatch.setattr(Layout, "save", cut)
    with pytest.raises(
        UnsupportedModelError,
        match=r"cannot convert it back, so it cannot be saved as it was; .*save_original_format=False",
    ):
        Decoder(folder_of("mixtral"))


def test_a_rule_that_fails_is_refused_with_its_reason(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("Undefined Operation encountered!")

    monkeypatch.setattr(Layout, "load", fail)
    with pytest.raises(UnsupportedModelError, match=r"cannot be converted .*Undefined Operation encountered!"):
        Decoder(folder_of("mixtral"))


def test_what_would_be_read_back_otherwise_is_not_saved(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(folder_of("mixtral"))
    block = decoder.load(1)
    whole = Layout.save

    def turned(self: Layout, conversion: Any, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        made = whole(self, conversion, parameters)
        return dict(zip(made, reversed(list(made.values())), strict=True))

    monkeypatch.setattr(Layout, "save", turned)
    with pytest.raises(UnsupportedModelError, match="would read back other values"):
        decoder.rounded(block)


def test_what_is_stored_is_compared_without_further_copies_of_all_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU they would take its memory: several times what is stored."""
    decoder = Decoder(tiny.save("mixtral", tmp_path, torch.bfloat16))
    block = decoder.load(1)
    save, load, made = Layout.save, Layout.load, list[weakref.ref[Tensor]]()

    def saved(self: Layout, conversion: Conversion, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        found = save(self, conversion, parameters)
        if conversion.rule is not None:
            made.extend(map(weakref.ref, found.values()))
        return found

    def loaded(self: Layout, conversion: Conversion, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        assert not any(one() is not None for one in made)  # what is rounded by now
        return load(self, conversion, stored)

    monkeypatch.setattr(Layout, "save", saved)
    monkeypatch.setattr(Layout, "load", loaded)
    monkeypatch.setattr(Tensor, "nan_to_num", lambda _: pytest.fail("a copy was made"))
    decoder.rounded(block)
    assert made


def test_an_expert_of_which_a_weight_is_nan_is_read_back_as_it_is(folder_of: FolderOf) -> None:
    """What a run refuses then is the weight, not the model."""
    decoder = Decoder(folder_of("mixtral"))
    block = decoder.load(1)
    experts = block.module.get_parameter("mlp.experts.down_proj")
    with torch.no_grad():
        experts[2, 3, 4] = math.nan
    assert decoder.rounded(block)[1]["mlp.experts.down_proj"].isnan().nonzero().tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("name", ["deepseek_v4", "mixtral"])
def test_names_without_the_prefix_of_the_base_model_are_given_back_so(
    name: str, folder_of: FolderOf, tmp_path: Path
) -> None:
    """As the names of DeepSeek V4 as published, whose blocks are layers.0, not model.layers.0."""
    named = load_file(folder_of(name) / "model.safetensors")
    tensors = {key.removeprefix("model."): tensor for key, tensor in named.items()}
    assert tensors.keys() != named.keys()
    (tmp_path / "config.json").write_bytes((folder_of(name) / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    decoder = Decoder(tmp_path)
    for index in range(len(decoder)):
        stored, _ = decoder.rounded(decoder.load(index))
        assert stored.keys() == {key for key in tensors if decoder.block_of(key) == index}
        assert all(torch.equal(one, tensors[key]) for key, one in stored.items())
