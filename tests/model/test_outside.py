"""Weights outside the blocks are loaded as far as they are used, where they are used, and have the right shapes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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


@pytest.mark.parametrize("table", ["embed_tokens", "embed_tokens_per_layer"])
def test_of_each_table_of_embeddings_only_the_rows_in_use_are_loaded(
    table: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of Gemma 4 E2B's embeddings for each block is larger than all its blocks."""
    empty = torch.empty

    def unknown(*args: Any, **options: Any) -> Tensor:
        made = empty(*args, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", unknown)
    decoder = Decoder(folder_of("gemma4"))
    list(decoder.embed(torch.tensor([[5, 9, 5], [70, 9, 300]]), [slice(0, 1), slice(1, 2)]))
    loaded = decoder.skeleton.model.get_submodule(f"model.{table}").weight
    rows = loaded.isfinite().all(1).nonzero()[:, 0]
    assert rows.tolist() == [5, 9, 70, 300]
    assert torch.equal(loaded[rows], decoder.checkpoint.tensor(f"model.{table}.weight")[rows])


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
