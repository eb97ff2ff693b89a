"""A model without weights shows where its blocks are, what they are passed, or why it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file
from torch import Tensor, nn

from reprune.errors import InputError, UnsupportedModelError
from reprune.model.decoder import Decoder
from reprune.model.skeleton import Skeleton
from reprune.model.whole import load_model

from .. import odd, tiny

FolderOf = Callable[[str], Path]
architectures = pytest.mark.parametrize("name", list(tiny.CONFIGS))


def _fill(path: str, module: nn.Module, ids: Tensor | None) -> None:
    """Give a module weights of 0.5."""
    del path, ids
    for key, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, key, nn.Parameter(torch.full(parameter.shape, 0.5), requires_grad=False))


def _config(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@architectures
def test_no_parameter_takes_memory_and_the_module_is_in_evaluation_mode(name: str, folder_of: FolderOf) -> None:
    skeleton = Skeleton(folder_of(name))
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert not any(module.training for module in skeleton.model.modules())


@architectures
def test_buffers_are_those_of_the_real_model(name: str, folder_of: FolderOf) -> None:
    found = dict(Skeleton(folder_of(name)).model.named_buffers())
    expected = dict(tiny.build(name).named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@architectures
def test_recording_shows_each_block_its_own_arguments_and_puts_the_blocks_back(
    name: str, folder_of: FolderOf, ids: Tensor
) -> None:
    skeleton = Skeleton(folder_of(name))
    blocks = list(skeleton.blocks)
    states, calls = skeleton.record(ids, _fill)
    assert states.shape == (*ids.shape, 32)
    assert len(calls) == 3
    assert all(one is other for one, other in zip(skeleton.blocks, blocks, strict=True))
    for call in calls:
        args, kwargs = call.bind(states)
        assert any(value is states for value in (*args, *kwargs.values()))
        assert not any(value is states for value in (*call.args, *call.kwargs.values()))


def test_sliding_and_full_attention_are_told_apart(folder_of: FolderOf, ids: Tensor) -> None:
    _, calls = Skeleton(folder_of("gemma3")).record(ids, _fill)
    masks = [call.kwargs["attention_mask"] for call in calls]
    assert torch.equal(masks[0], masks[2])
    assert masks[1] is None or not torch.equal(masks[0], masks[1])


def test_no_dropout_is_left_to_chance(tmp_path: Path, ids: Tensor) -> None:
    config = tf.GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, embd_pdrop=0.5)
    config.save_pretrained(tmp_path)
    first, second = (Skeleton(tmp_path).record(ids, _fill)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_only_modules_that_run_before_the_blocks_are_filled(folder_of: FolderOf, ids: Tensor) -> None:
    skeleton = Skeleton(folder_of("opt"))
    filled: set[str] = set()

    def fill(path: str, module: nn.Module, some: Tensor | None) -> None:
        filled.add(path.removeprefix("model.decoder."))
        _fill(path, module, some)

    skeleton.record(ids, fill)
    assert filled == {"embed_positions", "embed_tokens", "project_in"}


def test_no_hook_stays_behind(folder_of: FolderOf, ids: Tensor) -> None:
    skeleton = Skeleton(folder_of("llama"))
    skeleton.record(ids, _fill)
    assert not any(module._forward_pre_hooks for module in skeleton.model.modules())


def test_blocks_that_return_tuples_are_found_out_by_trying(tmp_path: Path, ids: Tensor) -> None:
    skeleton = Skeleton(odd.save("tuples", tmp_path))
    assert [len(skeleton.record(ids, _fill)[1]) for _ in range(2)] == [3, 3]


@pytest.mark.parametrize("returned", [1, 2, 3, 4, -2, -3, -4])
def test_tuples_of_a_length_that_the_model_insists_on_are_found_out_by_trying(
    returned: int, tmp_path: Path, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the length is negative, it requires None beside the states, otherwise a value."""

    def through(self: nn.Module, block: nn.Module, states: Tensor, ids: Tensor) -> Tensor:
        first, *beside = block(states)
        if len(beside) != abs(returned) - 1 or any((one is None) != (returned < 0) for one in beside):
            raise TypeError("not what my blocks return")
        assert isinstance(first, Tensor)
        return first

    monkeypatch.setattr(odd._Base, "_through", through)
    assert len(Skeleton(odd.save("", tmp_path)).record(ids, _fill)[1]) == 3


def test_a_forward_that_fails_is_refused_with_its_reason(tmp_path: Path, ids: Tensor) -> None:
    skeleton = Skeleton(odd.save("", tmp_path))

    def fill(path: str, module: nn.Module, some: Tensor | None) -> None:
        del path, module, some
        raise RuntimeError("no weights here")

    blocks = list(skeleton.blocks)
    with pytest.raises(
        UnsupportedModelError, match=r"OddModel: .*RuntimeError: no weights here.*; it must run on input_ids"
    ):
        skeleton.record(ids, fill)
    assert all(one is other for one, other in zip(skeleton.blocks, blocks, strict=True))


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file or directory", "m.safetensors"), MemoryError()], ids=["disk", "memory"]
)
def test_weights_that_are_gone_and_memory_that_ran_out_are_no_fault_of_the_model(
    error: Exception, tmp_path: Path, ids: Tensor
) -> None:
    def fill(path: str, module: nn.Module, some: Tensor | None) -> None:
        del path, module, some
        raise error

    with pytest.raises(type(error)) as raised:
        Skeleton(odd.save("", tmp_path)).record(ids, fill)
    assert raised.value is error


@pytest.mark.parametrize(
    ("quirk", "reason"),
    [
        ("between", "changes the hidden states between block 0 and block 1, .*: have the block change them"),
        ("handed on", "block 1 is passed 'side', which depends on the blocks before it; .*: have .* to a dict that is"),
    ],
)
def test_what_is_done_to_states_between_blocks_is_refused_before_any_weight_is_read(
    quirk: odd.Quirk, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in RWKV, which halves its states after some blocks, where memory without values happens to be zero."""
    skeleton = Skeleton(odd.save(quirk, tmp_path))
    monkeypatch.setattr(torch, "empty", torch.zeros)
    with pytest.raises(UnsupportedModelError, match=f"OddModel: .*{reason}"):
        _ = skeleton.forms


def test_what_takes_no_positions_says_so(tmp_path: Path) -> None:
    assert Skeleton(odd.save("", tmp_path)).max_positions is None


def test_several_lists_of_blocks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"several lists .*model\.layers, model\.more.*; gather"):
        Skeleton(odd.save("two lists", tmp_path))


def test_what_a_model_raises_that_does_not_run_on_text_alone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    tf.Blip2Config(
        vision_config=layers | {"image_size": 28, "patch_size": 14},
        qformer_config=layers | {"encoder_hidden_size": 32},
        text_config=tiny.CONFIGS["opt"]().to_dict(),
        architectures=["Blip2ForConditionalGeneration"],
    ).save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=r"through none as a whole .* \(TypeError: .*'pixel_values'\)"
    ) as said:
        Skeleton(tmp_path)
    assert "; of its parts, language_model can generate: load the model with from_pretrained" in str(said.value)
    monkeypatch.setattr("reprune.model.skeleton.part_instead", lambda _: "")
    with pytest.raises(UnsupportedModelError, match=r"'pixel_values'\); have its forward run on input_ids alone\.$"):
        Skeleton(tmp_path)


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"no list of blocks with linears was found; expected an nn\.ModuleList"
    ):
        Skeleton(odd.save("no blocks", tmp_path))


def test_a_model_that_does_not_say_what_embeds_its_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = odd.save("", tmp_path)
    for answer in (Mock(side_effect=NotImplementedError), lambda _: None):
        monkeypatch.setattr(odd.OddModel, "get_input_embeddings", answer)
        with pytest.raises(UnsupportedModelError, match=r"OddModel: its get_input_embeddings\(\) gives no module"):
            Skeleton(folder)
        with pytest.raises(UnsupportedModelError, match=r"OddModel: its get_input_embeddings\(\) gives no module"):
            load_model(folder, torch.device("cpu"))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    tf.T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="t5 is an encoder-decoder; a decoder is needed"):
        Skeleton(tmp_path)


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    tf.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"vit is not a causal language model.*: .*ViTConfig") as refused:
        Skeleton(tmp_path)
    assert "\n" not in str(refused.value), "without the names of all that would do"


def test_quantized_weights_are_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    whole = tiny.CONFIGS["llama"]().to_dict() | quantized
    part = tf.LlavaConfig(text_config=tiny.CONFIGS["llama"]()).to_dict()
    part["text_config"] |= quantized
    for config in (whole, part):
        with pytest.raises(
            UnsupportedModelError, match=r"weights are quantized.*bfloat16, float16 or float32"
        ) as refused:
            Skeleton(_config(tmp_path, **config))
        assert str(refused.value).endswith("weights (a .gguf file is dequantized by itself).")


@pytest.mark.parametrize("values", [{}, {"model_type": "no-such-model"}, {"model_type": "llama", "hidden_size": "x"}])
def test_a_configuration_of_no_known_model_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        Skeleton(_config(tmp_path, **values))


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_configuration_that_is_no_json_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        Skeleton(tmp_path)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        Skeleton(tmp_path)


@pytest.mark.parametrize("opened", [Skeleton, Decoder])
def test_code_that_comes_with_a_model_is_not_run_unless_allowed(
    opened: Callable[[Path], object], tmp_path: Path
) -> None:
    auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    folder = _config(tmp_path, model_type="homemade", auto_map=auto_map)
    (folder / "code.py").write_text("raise SystemExit('this must not run')\n")
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"give --trust-remote-code \(from Python, trust_remote_code=True\)\.$"):
        opened(folder)
