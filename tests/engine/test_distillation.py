"""The last blocks may be fitted once more, to what the dense model predicts (`distill`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import reprune
from reprune.engine.ledger import Ledger
from reprune.engine.watcher import Watcher
from reprune.errors import InputError
from reprune.planning.schedule import Window
from tests import tiny
from tests.engine.quick import prune, tensors

LAST = ["distill.blocks=2", "distill.epochs=3", "distill.lr=2%"]


class Keeping(Watcher):
    """Keeps the samples of a run."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def window_done(self, window: Window, record: Any) -> None:
        self.calibration, self.heldout = Ledger(self.out).samples()


@torch.no_grad()
def divergence(dense: Path, sparse: Path, ids: torch.Tensor) -> float:
    """KL(dense || sparse) a token, from the formula, by plain Transformers."""
    one, other = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits.double().softmax(-1)
        for folder in (dense, sparse)
    )
    return float((one * (one / other).log()).sum(-1).mean())


@pytest.mark.parametrize("rung", ["LR", "BR+GP", "BR+GP+CR", "auto"])
def test_predictions_come_nearer_to_the_dense_models_and_nothing_else_changes(
    llama: Path, tmp_path: Path, rung: str
) -> None:
    plain, distilled = tmp_path / "plain", tmp_path / "distilled"
    keeping = Keeping(distilled)
    before = prune(llama, plain, reconstruct=rung)
    record = prune(llama, distilled, *LAST, reconstruct=rung, watcher=keeping)
    assert before["distillation"] is None
    step = record["distillation"]
    # What is on record is what plain Transformers finds.
    measured = [divergence(llama, folder, keeping.heldout) for folder in (plain, distilled)]
    assert step["heldout_divergence"]["before"] == pytest.approx(measured[0], rel=1e-3)
    assert step["heldout_divergence"]["after"] == pytest.approx(measured[1], rel=1e-3)
    assert measured[1] < measured[0]
    assert divergence(llama, distilled, keeping.calibration) < divergence(llama, plain, keeping.calibration)
    # The windows, and all that lies outside the last blocks, are those of the plain run; zeros stay zeros.
    last = tuple(f"layers.{index}." for index in step["blocks"])
    assert step["blocks"] == [len(record["blocks"]) - 2, len(record["blocks"]) - 1]
    seconds = {"seconds"}
    assert [{k: v for k, v in window.items() if k not in seconds} for window in record["windows"]] == [
        {k: v for k, v in window.items() if k not in seconds} for window in before["windows"]
    ]
    were, are = tensors(plain), tensors(distilled)
    assert were.keys() == are.keys()
    for name, tensor in are.items():
        changed = not torch.equal(tensor, were[name])
        assert changed == any(part in name for part in last), name
        if changed and tensor.dim() == 2:
            assert torch.equal(tensor == 0, were[name] == 0)
    assert reprune.verify(distilled).passed


def test_block_errors_on_record_are_those_of_the_blocks_as_they_are_saved(llama: Path, tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "out")
    record = prune(llama, tmp_path / "out", *LAST, watcher=keeping)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (llama, tmp_path / "out")]
    found: list[list[torch.Tensor]] = [[], []]
    for model, seen in zip(models, found, strict=True):
        for block in model.model.layers:
            block.register_forward_hook(lambda _m, _a, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model(keeping.heldout)
    for entry, dense, sparse in zip(record["blocks"], *found, strict=True):
        relative = float((sparse - dense).square().sum() / dense.square().sum())
        assert entry["relative_heldout_error"] == pytest.approx(relative, rel=1e-3)
    assert record["distillation"]["last_block"]["relative_heldout_error"]["after"] == pytest.approx(relative, rel=1e-3)


@pytest.mark.parametrize("rate", ["2%", "3e4"])
def test_the_guard_keeps_no_state_that_predicts_worse(llama: Path, tmp_path: Path, rate: str) -> None:
    step = prune(llama, tmp_path / "out", "distill=2", f"distill.lr={rate}")["distillation"]
    assert step["heldout_divergence"]["after"] <= step["heldout_divergence"]["before"] * (1 + 1e-6)
    assert all(math.isfinite(value) for value in step["heldout_divergence"].values())


def test_all_blocks_can_be_distilled(llama: Path, tmp_path: Path) -> None:
    blocks = len(prune(llama, tmp_path / "plain")["blocks"])
    step = prune(llama, tmp_path / "out", *LAST, f"distill.blocks={blocks}")["distillation"]
    assert step["blocks"] == list(range(blocks))
    assert step["heldout_divergence"]["after"] < step["heldout_divergence"]["before"]


def test_more_blocks_than_there_are_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"distill.blocks 9: llama has \d blocks"):
        prune(llama, tmp_path / "out", "distill=9")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [*tiny.CONFIGS])
def test_every_form_of_decoder_can_be_distilled(form: str, tmp_path: Path) -> None:
    folder = tiny.save(form, tmp_path / "dense")
    keeping = Keeping(tmp_path / "out")
    step = prune(folder, tmp_path / "out", "distill=1", "distill.lr=1%", watcher=keeping)["distillation"]
    measured = divergence(folder, tmp_path / "out", keeping.heldout)
    assert step["heldout_divergence"]["after"] == pytest.approx(measured, rel=0.01, abs=1e-6)
