"""Weights outside the blocks are on the device of their modules, and have the shapes that the model expects."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprune.errors import UnsupportedModelError
from reprune.model.decoder import Decoder


def test_weights_that_were_looked_at_before_go_where_they_are_run(folder_of: Callable[[str], Path]) -> None:
    decoder = Decoder(folder_of("llama"))
    norm = decoder.skeleton.model.model.norm
    decoder._outside.fill("model.norm", norm, None)
    assert torch.equal(norm.weight, decoder.checkpoint.tensor("model.norm.weight"))
    decoder._outside.fill("model.norm", norm, None, torch.device("cpu"))
    assert norm.weight.device == torch.device("cpu")
    decoder._outside.fill("model.norm", norm, None, torch.device("meta"))  # stands for a GPU
    assert norm.weight.device == torch.device("meta")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_one_of_another_shape_is_refused_before_anything_is_done(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """An example is a head that was not resized with the embedding: nothing could load the resulting model."""
    folder = shutil.copytree(folder_of("llama"), tmp_path / "model")
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        tensors |= {key: torch.cat([tensors[key], tensors[key][:8]]) for key in tensors.keys() & {name}}
        save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=rf"the tensor {name} has the shape .* not of the same model"):
        Decoder(folder)
