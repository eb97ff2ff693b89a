"""Messages about quantized weights say how to dequantize them, if Transformers can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprune.errors import UnsupportedModelError
from reprune.model.bare import dequantizing
from reprune.model.decoder import Decoder
from tests import tiny
from tests.damage import add_unknown


def _quantized(folder: Path, method: str) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    return folder


@pytest.mark.parametrize(("method", "kind"), [("mxfp4", "Mxfp4Config"), ("fp8", "FineGrainedFP8Config")])
def test_the_way_is_that_of_the_quantizer(method: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"are quantized.*; if there are none, .*={kind}\(dequantize=True"):
        Decoder(_quantized(tiny.save("llama", tmp_path), method))


def test_of_plain_weights_it_is_said_what_to_take_out(tmp_path: Path) -> None:
    """If an adapter was merged into a model loaded in four bits, the configuration may still say quantized."""
    folder = _quantized(tiny.save("llama", tmp_path, torch.bfloat16), "bitsandbytes")
    with pytest.raises(UnsupportedModelError, match=r"hold bfloat16 only: .* remove quantization_config from"):
        Decoder(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"\(a \.gguf file is dequantized by itself\)\.$"):
        Decoder(folder)


@pytest.mark.parametrize("method", ["gptq", "nonesuch"])
def test_where_transformers_knows_none_nothing_is_said(method: str) -> None:
    assert dequantizing({"quant_method": method}) == dequantizing("none") == ""


def test_it_is_said_of_weights_that_are_stored_in_eight_bits_too(tmp_path: Path) -> None:
    folder = _quantized(tiny.save("llama", tmp_path), "fp8")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"are quantized.*FineGrainedFP8Config\(dequantize"):
        Decoder(folder)


def test_it_is_said_where_pytorch_does_not_know_what_the_scales_are_stored_as(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path)
    add_unknown(folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight_scale_inv")
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.weight_scale_inv is stored as F6_E2M3"):
        Decoder(folder)
    with pytest.raises(UnsupportedModelError, match=r"are quantized.*FineGrainedFP8Config\(dequantize"):
        Decoder(_quantized(folder, "fp8"))
