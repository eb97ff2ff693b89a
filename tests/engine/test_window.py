"""A block is written only if its weights are finite in their saved dtype; zeros tell what was pruned before."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import reprune
from reprune.engine import fresh
from reprune.engine.frontier import Frontier
from reprune.engine.window import PrunedBlock, WindowProblem, pruned_before
from reprune.errors import NumericalError
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Errors
from reprune.model.decoder import Decoder
from reprune.planning.choice import Choice
from reprune.planning.schedule import Window
from tests import tiny
from tests.engine.quick import prune, tensors


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e6])
def test_no_weight_that_is_not_finite_reaches_a_file(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e6 is finite, but not in float16, in which it would be saved."""
    whole = fresh.prune_block_

    def broken(pruned: Any, *arguments: Any) -> Any:
        found = whole(pruned, *arguments)
        if pruned.index == 1:
            with torch.no_grad():
                pruned.block.module.mlp.up_proj.weight[3, 5] = value
        return found

    monkeypatch.setattr(fresh, "prune_block_", broken)
    model = tiny.save("llama", tmp_path / "model", torch.float16)
    with pytest.raises(NumericalError, match=r"block 1: mlp\.up_proj\.weight holds NaN or infinite values"):
        prune(model, tmp_path / "out", pruner="magnitude", reconstruct="LR")
    written = tensors(tmp_path / "out")
    assert {name.split(".")[2] for name in written} == {"0"}
    assert all(tensor.isfinite().all() for tensor in written.values())
    assert reprune.status(tmp_path / "out").windows_done == 1


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        ("LR", r"window 1 \(blocks \[1\]\): its outputs are not finite after pruning"),
        ("BR", r"window 1 \(blocks \[1\]\): the window's outputs are not finite before its reconstruction"),
    ],
)
def test_where_float16_overflows_it_is_said_what_leads_on(rung: str, message: str, tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    weights = tensors(model)
    weights["model.layers.1.mlp.down_proj.weight"] *= 3e6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    leads_on = r"; products are in float16, .* --set precision=bfloat16 or --set precision=float32$"
    with pytest.raises(NumericalError, match=message + leads_on):
        prune(model, tmp_path / "out", "precision=float16", pruner="magnitude", reconstruct=rung)
    with pytest.raises(NumericalError, match=message + leads_on):
        reprune.resume(tmp_path / "out")
    assert prune(model, tmp_path / "other", "precision=float32", pruner="magnitude", reconstruct="LR")["sparsity"] > 0


@pytest.mark.parametrize(
    ("rung", "message"),
    [("LR", "its outputs are not finite after pruning"), ("BR", "outputs are not finite before its reconstruction")],
)
def test_what_is_not_finite_on_held_out_samples_alone_is_refused_too(
    rung: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No state could be judged by them, and the record would hold NaN, which is no JSON."""
    monkeypatch.setattr(Decoder, "check_finite", lambda self: None)  # the NaN stands for a state that overflows
    model = tiny.save("llama", tmp_path / "model")
    weights = tensors(model)
    weights["model.embed_tokens.weight"][tiny.tokenizer()("\x01", add_special_tokens=False).input_ids] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "rare.txt").write_text("\x01" * 100)
    with pytest.raises(NumericalError, match=message):
        prune(model, tmp_path / "out", reconstruct=rung, heldout=[f"{tmp_path}/rare.txt"])


@pytest.mark.parametrize("which", ["calibration", "heldout"])
def test_an_error_against_the_dense_model_that_is_not_finite_is_refused(
    which: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own states may overflow in float16 where a local teacher's, which are the sparse model's, do not."""
    advance = Frontier.advance

    def overflowing(self: Frontier, window: Window, *arguments: Any) -> tuple[Errors, dict[int, Errors]]:
        errors, of_block = advance(self, window, *arguments)
        infinite = {which: Error(math.inf, math.nan)}
        return errors, {index: replace(one, **infinite) for index, one in of_block.items()}

    monkeypatch.setattr(Frontier, "advance", overflowing)
    message = "^block 0: its outputs, or the dense model's, are not finite$"
    with pytest.raises(NumericalError, match=message):
        prune(llama, tmp_path / "out", reconstruct="LR")
    assert reprune.status(tmp_path / "out").windows_done == 0


def test_outputs_that_have_become_infinite_since_the_last_loss_are_said_to_have_by_the_fit(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on samples that are calibrated on alone."""
    monkeypatch.setattr(WindowProblem, "heldout_error", lambda _: Error(1.0, 1.0))
    message = r"^window 0 \(blocks \[0\]\): its outputs are not finite after its reconstruction$"
    with pytest.raises(NumericalError, match=message):
        prune(llama, tmp_path / "out", "guard=off", reconstruct="BR", lr=1e30, epochs=1, batch_size=8)


@pytest.mark.parametrize(("zeros", "before"), [(4, True), (3, False)])
def test_a_matrix_of_which_a_quarter_is_zero_was_pruned_before(zeros: int, before: bool) -> None:
    matrix = torch.ones(4, 4)
    matrix[0, :zeros] = 0
    linear: Any = SimpleNamespace(matrix=lambda: matrix)
    mask = pruned_before(linear)
    assert (mask is not None) is before
    assert mask is None or torch.equal(mask, matrix != 0)


def test_idle_are_the_linears_that_were_to_be_pruned_and_never_ran() -> None:
    linears = [SimpleNamespace(name=name) for name in ("pruned", "router", "excluded", "never")]
    block: Any = SimpleNamespace(index=0, linears=linears, routers={"router"})
    pruned = PrunedBlock(block, masks={"pruned": torch.ones(1, dtype=torch.bool)})
    assert pruned.idle(Choice(exclude=("excluded",))) == ["never"]
