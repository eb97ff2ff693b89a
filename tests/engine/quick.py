"""Quick runs of the whole job, for the engine's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import reprune
from reprune.doors.prepare import draw, open_decoder
from reprune.planning.layers import resolve_recipe
from reprune.planning.samples import Samples

QUICK = {"samples": 8, "seqlen": 24, "epochs": 2, "lr": 1e-3, "batch_size": 5, "device": "cpu"}


def prune(model: Path, out: Path, *settings: str, **options: Any) -> dict[str, Any]:
    return reprune.prune(
        model, out, calibration="manual", settings=["precision=float32", *settings], **{**QUICK, **options}
    )


def samples_of(model: Path, record: dict[str, Any]) -> Samples:
    """The samples of a run, drawn once more by its record."""
    recipe = resolve_recipe(str(model), record["recipe"])
    return draw(recipe, open_decoder(recipe, model))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
