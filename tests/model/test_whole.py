"""A whole model gives bit for bit the results of one loaded in float32 under autocast, in half of the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from reprune.errors import InputError, UnsupportedModelError
from reprune.model import whole
from reprune.model.block import Precision
from reprune.model.checkpoint import Checkpoint
from reprune.model.whole import load_model, weights_dtype, whole_bytes

from .. import tiny
from ..damage import add_unknown

CPU = torch.device("cpu")
BFLOAT16 = Precision(torch.bfloat16)
IDS = torch.randint(3, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    with BFLOAT16.on(CPU):
        return model(IDS).logits


def plain(folder: Path) -> Any:
    """The slow twin: all in float32, with each weight rounded at each product."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_its_bits_are_those_of_autocast_over_float32(name: str, saved: torch.dtype, tmp_path: Path) -> None:
    folder = tiny.save(name, tmp_path / name, saved)
    model = load_model(folder, CPU, precision=BFLOAT16)
    assert torch.equal(logits(model), logits(plain(folder)))
    assert torch.equal(logits(model), logits(plain(folder))), "a second time, too"
    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            linear = key == "weight" and isinstance(module, nn.Linear | Conv1D)
            expected = torch.bfloat16 if linear else saved if parameter is embedding else torch.float32
            assert parameter.dtype == expected, key


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_embeddings_for_each_block_are_widened_by_rows_too(name: str, tmp_path: Path) -> None:
    """They may be half of all weights."""
    folder = tiny.save(name, tmp_path / name, torch.bfloat16)
    model = load_model(folder, CPU, precision=BFLOAT16)
    assert model.model.embed_tokens_per_layer.weight.dtype == torch.bfloat16
    assert torch.equal(logits(model), logits(plain(folder)))


def experts_one_by_one(folder: Path) -> Any:
    """The slow twin, in which autocast sees each expert, as when blocks are run one by one."""
    model = plain(folder)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return model


@pytest.mark.parametrize("name", [name for name in tiny.MIXTURES if name != "dbrx"])  # it cannot run in bfloat16
def test_experts_are_multiplied_by_in_the_precision_of_products(name: str, tmp_path: Path) -> None:
    folder = tiny.save(name, tmp_path / name, torch.bfloat16)
    model = load_model(folder, CPU, precision=BFLOAT16)
    assert {parameter.dtype for parameter in model.parameters() if parameter.dim() > 2} == {torch.bfloat16}
    found, expected = logits(model), logits(experts_one_by_one(folder))
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_experts_whose_rows_no_grouped_product_takes_stay_float32(tmp_path: Path) -> None:
    config = tiny.MIXTURES["qwen3_moe"]()
    config.moe_intermediate_size = 12  # 24 bytes in bfloat16, not a multiple of 16
    torch.manual_seed(0)
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    model = load_model(folder, CPU, precision=BFLOAT16)
    assert model.model.layers[0].mlp.experts.down_proj.dtype == torch.float32
    found, expected = logits(model), logits(experts_one_by_one(folder))
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_an_embedding_is_as_it_was_even_after_an_error(tmp_path: Path) -> None:
    model = load_model(tiny.save("gemma3", tmp_path / "model", torch.bfloat16), CPU, precision=BFLOAT16)
    embedding = model.get_input_embeddings()
    before = embedding.weight
    with pytest.raises(IndexError), torch.no_grad():
        model(torch.tensor([[tiny.VOCABULARY]]))
    assert embedding.weight is before
    embedding.forward = None
    with pytest.raises(TypeError), torch.no_grad():
        model(IDS)
    del embedding.forward
    assert embedding.weight is before
    assert torch.isfinite(logits(model)).all()


def test_a_folder_of_two_dtypes_is_loaded_exactly(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model", torch.bfloat16)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    norm = "model.layers.1.input_layernorm.weight"
    tensors[norm] = tensors[norm].float() + 1e-4  # equal in bfloat16
    save_file(tensors, file, metadata={"format": "pt"})
    assert weights_dtype(folder) == "bfloat16, float32"
    model = load_model(folder, CPU, precision=BFLOAT16)
    assert torch.equal(model.get_parameter(norm), tensors[norm])
    assert torch.equal(logits(model), logits(plain(folder)))


def test_a_tensor_that_the_model_makes_nothing_of_is_not_counted(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model", torch.float16)
    counted, expected = whole_bytes(Checkpoint(folder), BFLOAT16), logits(load_model(folder, CPU, precision=BFLOAT16))
    file = folder / "model.safetensors"
    old = {f"model.layers.{index}.self_attn.rotary_emb.inv_freq": torch.rand(4) for index in range(3)}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    model = load_model(folder, CPU, precision=BFLOAT16)
    assert model.get_input_embeddings().weight.dtype == torch.float16
    assert torch.equal(logits(model), expected)
    assert (weights_dtype(folder), whole_bytes(Checkpoint(folder), BFLOAT16)) == ("float16", counted)


def test_a_model_whose_blocks_are_not_found_is_loaded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save("gemma3", tmp_path / "model", torch.bfloat16)

    def unsupported(*_: Any) -> None:
        raise UnsupportedModelError("no list of blocks")

    monkeypatch.setattr(whole, "build_bare", unsupported)
    assert torch.equal(logits(load_model(folder, CPU, precision=BFLOAT16)), logits(plain(folder)))


def test_without_a_precision_it_is_plain_float32(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model", torch.bfloat16)
    model = load_model(folder, CPU)
    assert weights_dtype(folder) == "bfloat16"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(folder)(IDS).logits)


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_is_not_there_is_named(lost: str, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"its files lack {lost}, so"):
        load_model(folder, CPU)


@pytest.mark.parametrize("name", [*tiny.CONFIGS, *tiny.PARALLEL, *tiny.MIXTURES, *tiny.JOINED])
def test_a_model_lacks_nothing_that_is_tied_or_that_transformers_makes(name: str, tmp_path: Path) -> None:
    load_model(tiny.save(name, tmp_path / name), CPU)


def test_what_transformers_cannot_load_is_an_input_error(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"lama"'))
    with pytest.raises(InputError, match=r"config\.json cannot be used"):
        load_model(folder, CPU)


@pytest.mark.parametrize("raised", [AssertionError, AttributeError, NameError, SyntaxError, TypeError])
def test_whatever_a_models_own_code_raises_is_an_input_error(raised: type[Exception], tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    (folder / "own.py").write_text(f"raise {raised.__name__}('its own')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"model: Transformers cannot load it: {raised.__name__}: its own"):
        load_model(folder, CPU, trust_remote_code=True)


def test_memory_that_runs_out_is_no_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", no_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_model(tiny.save("llama", tmp_path / "model"), CPU)


def test_the_package_of_a_quantizer_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    say_quantized(folder, {"quant_method": "gptq", "bits": 4, "group_size": 128})
    monkeypatch.setattr("transformers.quantizers.quantizer_gptq.is_optimum_available", lambda: False)
    with pytest.raises(InputError, match=r"model: Transformers cannot load it: .*requires optimum"):
        load_model(folder, CPU)


@pytest.mark.parametrize("method", [["gptq"], {}])
def test_a_quantizer_whose_name_is_none_is_an_input_error(method: Any, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    say_quantized(folder, {"quant_method": method})
    with pytest.raises(InputError, match="model: Transformers cannot load it: "):
        load_model(folder, CPU)


class Packed(nn.Linear):
    """A linear with integer weights, as a quantizer keeps them."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows, bias=False)
        self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(rows, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight.dtype == torch.int8
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype))


class Quantizer(HfQuantizer):
    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and path != "lm_head":
                model.set_submodule(path, Packed(module.in_features, module.out_features))

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny Llama in bfloat16 with its blocks' linear weights in int8, which Transformers is made to load."""
    monkeypatch.setitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "pretended", QuantizationConfigMixin)
    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "pretended", Quantizer)
    folder = tiny.save("llama", tmp_path / "packed", torch.bfloat16)
    say_quantized(folder, {"quant_method": "pretended"})
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        scale = tensors[name].float().abs().amax(1, keepdim=True) / 127
        tensors[name] = (tensors[name] / scale).round().to(torch.int8)
        tensors[name.replace("weight", "scale")] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def say_quantized(folder: Path, said: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16], ids=str)
def test_quantized_weights_stay_as_their_quantizer_loads_them(products: torch.dtype, packed: Path) -> None:
    model = load_model(packed, CPU, precision=Precision(products))
    plainly = AutoModelForCausalLM.from_pretrained(packed, dtype=products).eval()
    found, expected = model.state_dict(), plainly.state_dict()
    assert {name: one.dtype for name, one in found.items()} == {name: one.dtype for name, one in expected.items()}
    assert all(torch.equal(found[name], one) for name, one in expected.items())
    dense = plain(tiny.save("llama", packed.parent / "dense", torch.bfloat16))
    assert (logits(model) - logits(dense)).norm() < 0.05 * logits(dense).norm()
    assert weights_dtype(packed) == "bfloat16, float32, int8"


def test_a_quantized_model_without_a_head_is_refused_by_its_name(packed: Path) -> None:
    tensors = load_file(packed / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"its files lack lm_head\.weight, so"):
        load_model(packed, CPU, precision=BFLOAT16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Transformers multiplies them as they are, by another package")
@pytest.mark.skipif(Version(transformers.__version__) < Version("5.17"), reason="this Transformers loads no such Llama")
def test_weights_of_eight_bits_are_run_with_their_scales(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model", torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    rounded, stored = dict(tensors), dict(tensors)
    for name in [name for name in tensors if "_proj" in name]:
        scale = tensors[name].float().abs().max() / 448
        stored[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale.view(1, 1)
        rounded[name] = (stored[name].float() * scale).bfloat16()
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    expected = logits(plain(folder))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    said = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}
    say_quantized(folder, said)
    found = logits(load_model(folder, CPU, precision=BFLOAT16))
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert weights_dtype(folder) == "bfloat16, float32, float8_e4m3fn"
    say_quantized(folder, said | {"quant_method": "unknown"})  # Transformers ignores it
    with pytest.raises(UnsupportedModelError, match=r"the tensor .* is stored as float8_e4m3fn"):
        load_model(folder, CPU, precision=BFLOAT16)


def test_weights_of_eight_bits_whose_scale_nothing_says_are_refused_by_name(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    few = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(tensors | {"old": few}, folder / "model.safetensors", metadata={"format": "pt"})
    add_unknown(folder / "model.safetensors", "older")
    load_model(folder, CPU)
    save_file(tensors | {"lm_head.weight": few}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"model: the tensor lm_head\.weight is stored as float8_e4m3fn"):
        load_model(folder, CPU)


def test_weights_in_files_of_other_names_are_named_with_what_to_do(tmp_path: Path) -> None:
    one = tiny.save("llama", tmp_path / "one")
    (one / "model.safetensors").rename(one / "model.fp16.safetensors")
    with pytest.raises(
        InputError, match=r"cannot load it: .*[^.]; its weights are in model\.fp16.* to model\.safetensors\.$"
    ):
        load_model(one, CPU)
    several = tiny.save("llama", tmp_path / "several", max_shard_size="40kB")
    (several / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"; its weights are in model-00001.* download their index \(model\."):
        load_model(several, CPU)
    variant = tmp_path / "variant"
    tiny.build("llama").save_pretrained(variant, variant="bf16", max_shard_size="40kB")
    with pytest.raises(
        InputError, match=r"; its weights are in model\.bf16-00001.*: rename (\S+index\.bf16\.json) to m"
    ):
        load_model(variant, CPU)
    (variant / "model.safetensors.index.bf16.json").rename(variant / "model.safetensors.index.json")
    load_model(variant, CPU)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    expected = r"down_proj\.weight with shape \[32, 64\], but by its config\.json it should have \[32, 48\]"
    with pytest.raises(InputError, match=expected):
        load_model(folder, CPU)
