"""Each tensor of a checkpoint belongs to one block or to none, counts once, and is refused if several share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reprune.errors import UnsupportedModelError
from reprune.model.conversion import Conversion
from reprune.model.decoder import Decoder

from .. import odd, tiny

FolderOf = Callable[[str], Path]


def _with(folder: Path, **more: torch.Tensor) -> Path:
    file = folder / "model.safetensors"
    save_file(load_file(file) | more, file, metadata={"format": "pt"})
    return folder


def test_tensors_of_blocks_behind_the_last_are_no_blocks(tmp_path: Path) -> None:
    """Such tensors belong to blocks that predict further tokens."""
    more = {f"model.layers.{number}.eh_proj.weight": torch.ones(2) for number in ("2", "3", "x")}
    decoder = Decoder(_with(tiny.save("llama", tmp_path), **more))
    assert [decoder.block_of(name) for name in more] == [2, None, None]
    assert decoder.rounded(decoder.load(2))[0].keys() >= {"model.layers.2.eh_proj.weight"}


def test_all_tensors_are_counted_once(folder_of: FolderOf) -> None:
    decoder = Decoder(folder_of("mixtral"))
    outside = {name: entry.bytes for name, entry in decoder.checkpoint.entries.items() if ".layers." not in name}
    assert sorted(decoder.outside_bytes()) == sorted(outside.values())
    whole = sum(entry.bytes for entry in decoder.checkpoint.entries.values())
    assert sum(map(decoder.block_bytes, range(3))) == whole - sum(outside.values())
    assert decoder.head_shape == (tiny.VOCABULARY, 32)


def test_a_model_without_a_head_makes_logits_of_no_words(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(folder_of("llama"))
    monkeypatch.setattr(decoder.skeleton.model, "get_output_embeddings", lambda: None)
    assert decoder.head_shape == (0, 0)


def test_a_buffer_that_is_not_in_the_files_is_as_the_model_makes_it(tmp_path: Path) -> None:
    folder = tiny.save("gemma4", tmp_path)
    (file,) = folder.glob("*.safetensors")
    left = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(".layer_scalar")}
    save_file(left, file, metadata={"format": "pt"})
    assert float(Decoder(folder).load(1).module.get_buffer("layer_scalar")) == 1.0


def test_parameters_come_back_as_they_would_be_read_from_what_is_stored(tmp_path: Path) -> None:
    decoder = Decoder(tiny.save("mixtral", tmp_path, torch.bfloat16))
    block, name = decoder.load(1), "mlp.experts.down_proj"
    with torch.no_grad():
        block.module.get_parameter(name).mul_(1 + 2**-12)[2, 1, 3] = torch.nan  # which the engine reports, once rounded
    stored, parameters = decoder.rounded(block)
    wanted = block.module.get_parameter(name).detach().bfloat16()
    assert parameters[name].dtype == torch.bfloat16
    torch.testing.assert_close(parameters[name], wanted, rtol=0, atol=0, equal_nan=True)
    held = [tensor for key, tensor in stored.items() if not tensor.isfinite().all()]
    assert [tensor.isnan().nonzero().tolist() for tensor in held] == [[[1, 3]]]


def test_a_tensor_that_a_block_shares_with_what_lies_outside_is_refused(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversion, "parameters", property(lambda self: [*self.shapes, "lm_head.weight"]))
    with pytest.raises(
        UnsupportedModelError, match=r"holds weights of both block 0 and lm_head.weight; blocks that share"
    ):
        Decoder(folder_of("llama"))


@pytest.mark.parametrize("other", ["layers.0.up.weight", "layers.1.twin"])
def test_weights_that_are_tied_to_a_blocks_and_not_stored_twice_are_called_so(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be tied to weights of another block, or of the same."""
    make, name = odd._Base.__init__, "layers.1.up.weight"

    def twinned(self: nn.Module, config: Any) -> None:
        make(self, config)
        if other.endswith("twin"):
            self.get_submodule("layers.1").twin = nn.Parameter(torch.zeros(32, 16))

    folder = odd.save("", tmp_path, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    stored = tensors.pop(f"model.{name}")
    save_file(tensors | {f"model.{other}": stored}, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(odd._Base, "__init__", twinned)
    monkeypatch.setattr(odd.OddModel, "_tied_weights_keys", {f"model.{name}": f"model.{other}"})
    with pytest.raises(UnsupportedModelError, match=rf"model\.{name} and model\.{other} are the same weights"):
        Decoder(folder)


def test_one_sample_alone_may_hold_the_last_word(folder_of: FolderOf) -> None:
    decoder, ids = Decoder(folder_of("llama")), torch.tensor([[5, tiny.VOCABULARY - 1, 7]])
    ((_, states),) = decoder.embed(ids, [slice(0, 1)])
    assert torch.equal(states[0], decoder.checkpoint.tensor("model.embed_tokens.weight")[ids[0]])


def test_costs_are_of_the_device_that_is_asked_for(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, asked = Decoder(folder_of("llama")), list[str]()
    monkeypatch.setattr(decoder.weightless, "costs", lambda tokens, device: asked.append(device))
    decoder.costs(8)
    decoder.costs(8, "cuda")
    assert asked == ["cpu", "cuda"]
