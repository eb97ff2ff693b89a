"""Weights outside the blocks are where the modules that hold them run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

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
