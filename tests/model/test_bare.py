"""A bare model has parameters without values, other threads are not affected, and its longest sequence is known."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Llama4TextConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    OPTConfig,
    RobertaConfig,
)

from reprune.errors import InputError, UnsupportedModelError
from reprune.model import bare
from reprune.model.bare import build_bare, check_embedding, longest, part_instead
from reprune.model.skeleton import Skeleton
from tests import tiny


def test_its_parameters_have_no_values_and_its_buffers_have(llama: Path) -> None:
    model = build_bare(llama, trust_remote_code=False)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} == {"cpu"}
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_other_threads_make_modules_with_values_meanwhile(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: list[nn.Module] = []

    class Slow(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            with ThreadPoolExecutor(1) as threads:
                theirs.append(threads.submit(nn.Linear, 2, 2).result())
            super().__init__(config)

    monkeypatch.setattr(bare, "model_class", lambda config, trusted: Slow)
    model = build_bare(llama, trust_remote_code=False)
    assert isinstance(model, Slow)
    assert {parameter.device for parameter in theirs[0].parameters()} == {torch.device("cpu")}


@pytest.mark.parametrize(
    ("kind", "architecture"), [(MixtralConfig, "MixtralForCausalLM"), (Llama4TextConfig, "Llama4ForCausalLM")]
)
def test_experts_beyond_any_memory_are_made_without_it(kind: Any, architecture: str, tmp_path: Path) -> None:
    size = {"hidden_size": 2**12, "intermediate_size": 2**14, "num_attention_heads": 32, "num_hidden_layers": 1}
    kind(vocab_size=16, num_local_experts=2**16, architectures=[architecture], **size).save_pretrained(tmp_path)
    block = build_bare(tmp_path, trust_remote_code=False).model.layers[0]
    assert sum(parameter.numel() for parameter in block.parameters()) > 2**43


@pytest.mark.parametrize("architectures", [None, ["LlavaOfAnotherRelease"], ["LlamaForCausalLM"]])
def test_a_model_of_several_parts_is_the_whole_also_where_its_class_is_not_said(
    architectures: list[str] | None, tmp_path: Path
) -> None:
    _llava(architectures=architectures).save_pretrained(tmp_path)
    assert isinstance(build_bare(tmp_path, trust_remote_code=False), LlavaForConditionalGeneration)


def test_code_of_several_parts_that_comes_with_a_model_is_not_needed_where_transformers_has_the_class(
    tmp_path: Path,
) -> None:
    """Molmo 2 and PaddleOCR-VL have such code on the Hub, the latter as a causal language model too."""
    code = {"AutoConfig": "code.C", "AutoModelForImageTextToText": "code.M"}
    (tmp_path / "code.py").write_text("raise SystemExit('this must not run')\n")
    for own in (code, code | {"AutoModelForCausalLM": "code.M"}):
        _llava(auto_map=own).save_pretrained(tmp_path)
        assert isinstance(build_bare(tmp_path, trust_remote_code=False), LlavaForConditionalGeneration)


def test_code_of_several_parts_that_is_trusted_is_used(tmp_path: Path) -> None:
    _llava(auto_map={"AutoModelForCausalLM": "code.M"}).save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text("raise OSError('this is run')\n")
    with pytest.raises(UnsupportedModelError, match="OSError: this is run"):
        build_bare(tmp_path, trust_remote_code=True)


def _llava(**options: Any) -> LlavaConfig:
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return LlavaConfig(text_config=tiny.CONFIGS["llama"]().to_dict(), vision_config=vision, **options)


def test_of_a_whole_that_embeds_no_tokens_the_parts_that_generate_are_named() -> None:
    parts = {"tower": tiny.build("gpt2").transformer, "thinker": tiny.build("llama"), "vocoder": nn.Linear(2, 2)}
    whole = nn.ModuleDict(parts)
    with pytest.raises(UnsupportedModelError, match="of its parts, thinker can generate: load the model"):
        check_embedding(whole)


def test_a_part_that_transformers_does_not_load_by_itself_is_not_named() -> None:
    """As the text model of Kosmos 2, whose class and configuration only the whole model knows."""
    part = tiny.build("llama")
    part.__class__ = type("Inner", (type(part),), {})
    assert part_instead(nn.ModuleDict({"inner": part})) == ""


@pytest.mark.parametrize(("kind", "longest_"), [(RobertaConfig, 29), (BertConfig, 32), (OPTConfig, 32)])
def test_a_table_whose_first_rows_are_of_padding_takes_fewer_tokens(kind: Any, longest_: int, tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
    config = kind(vocab_size=tiny.VOCABULARY, pad_token_id=2, is_decoder=True, **small)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    ids = torch.full((1, longest_ + 1), 3)
    model(ids[:, :-1])
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)
    assert longest(tmp_path, trust_remote_code=False) == Skeleton(tmp_path).max_positions == longest_


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"hidden_act": "oops"}, "KeyError: 'oops'"),
        ({"pad_token_id": 400}, "AssertionError: Padding_idx"),
        ({"attn_implementation": "flash_attention_2"}, "ImportError: FlashAttention2 .*be installed"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Own"}}, "SyntaxError: "),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_with_what_it_raises(
    said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    (folder / "own.py").write_text("def Own(:")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | said))
    with pytest.raises(UnsupportedModelError, match=rf"^model: Transformers cannot build a model .*\({message}"):
        build_bare(folder, trust_remote_code=True)


def test_of_a_package_that_is_missing_it_is_said_to_install_it(tmp_path: Path) -> None:
    """As timm for the images of Gemma 3n, or whatever the code that comes with a model imports."""
    folder = tiny.save("llama", tmp_path / "model")
    (folder / "own.py").write_text("import installed_nowhere")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Own"}}))
    with pytest.raises(UnsupportedModelError, match=r"`pip install installed_nowhere`\); install what it asks for, or"):
        build_bare(folder, trust_remote_code=True)


def _passed_over(release: str, since: bool) -> pytest.MarkDecorator:
    """Skips if the installed Transformers passes over a kernel: it does so in releases since this one, or before."""
    passes_over = (Version(transformers.__version__) >= Version(release)) == since
    return pytest.mark.skipif(passes_over, reason="this release of Transformers passes over one that is named so")


_NAMING_A_KERNEL: list[Any] = [
    {"attn_implementation": "some/kernel"},
    pytest.param(
        {"_attn_implementation": "paged|kernels-community/flash-attn2@v1:attend"},
        marks=_passed_over("5.25", since=True),
    ),
]
_FOR_PARTS: list[dict[str, Any]] = [
    {"model_type": "gemma3", "attn_implementation": {"text_config": "some/kernel"}},
    {"attn_implementation": {"": "some/kernel"}},
]


def _naming_a_kernel(folder: Path, said: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | said))
    return folder


@pytest.mark.parametrize("said", [*_NAMING_A_KERNEL, *_FOR_PARTS])
def test_a_kernel_of_the_hub_that_a_configuration_names_is_not_fetched(said: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^model: its config.json names '[\w|]+[/-].* as its attention, which is code that"
    ):
        build_bare(_naming_a_kernel(tmp_path / "model", said), trust_remote_code=False)


@pytest.mark.parametrize(
    "said",
    [*_NAMING_A_KERNEL, *(pytest.param(said, marks=_passed_over("5.23", since=False)) for said in _FOR_PARTS)],
)
def test_a_kernel_of_a_trusted_configuration_is_fetched_by_transformers(said: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot build a model .*kernel"):
        build_bare(_naming_a_kernel(tmp_path / "model", said), trust_remote_code=True)


def test_a_configuration_of_no_causal_language_model_is_told_from_one_that_cannot_be_built(tmp_path: Path) -> None:
    for name, config, why in (
        ("images", transformers.ViTConfig(), "vit is not a causal language model of Transformers: Unrecognized"),
        (
            "odd",
            transformers.GPT2Config(n_embd=30, n_head=4),
            r"cannot build a model from its config.json \(ValueError",
        ),
    ):
        config.save_pretrained(folder := tmp_path / name)
        with pytest.raises(UnsupportedModelError, match=why):
            build_bare(folder, trust_remote_code=False)


def test_a_configuration_that_takes_all_memory_is_laid_to_no_model(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(bare.AutoConfig, "from_pretrained", no_memory)
    with pytest.raises(MemoryError):
        build_bare(llama, trust_remote_code=False)


def test_memory_that_runs_out_is_laid_to_no_model(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(LlamaForCausalLM, "_from_config", no_memory)
    with pytest.raises(MemoryError):
        build_bare(llama, trust_remote_code=False)
