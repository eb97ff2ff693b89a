"""Models whose blocks hand on more than hidden states, or that skip some blocks, are pruned like all others."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import reprune
from reprune.engine import allocate
from reprune.engine.compare import compare
from reprune.engine.result import Result
from reprune.math.patterns import Unstructured
from reprune.model.decoder import Decoder
from reprune.model.streams import StreamStore
from tests import odd, tiny
from tests.engine import quick
from tests.engine.quick import tensors

PASSED_OVER = {"mllama": 1, "mllama-last": 2}
BY_AUTO = ("gemma3n", "mllama", "mllama-last")
"""With several streams, and with a skipped block."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny.save(name, root / name) for name in tiny.JOINED}


@pytest.mark.parametrize("name", list(tiny.JOINED))
def test_decoders_whose_blocks_hand_on_more_than_states_are_pruned_and_fitted(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Blocks that text does not pass through keep their bits."""
    over, errors, before = PASSED_OVER.get(name), {}, tensors(folders[name])
    for rung in ("LR", "BR+GP+CR", *(["auto"] if name in BY_AUTO else [])):
        record = quick.prune(folders[name], tmp_path / rung, reconstruct=rung, epochs=3)
        for block in record["blocks"]:
            shares = [matrix["sparsity"] for matrix in block["matrices"]]
            if block["index"] == over:
                assert not shares
                assert block["idle"]
            else:
                assert shares
                assert all(share == pytest.approx(0.5, abs=0.02) for share in shares)
        assert reprune.verify(tmp_path / rung).passed
        errors[rung] = record["blocks"][-1]["calibration_error"]
        after = tensors(tmp_path / rung)
        assert before.keys() == after.keys()
        kept = [key for key in before if f"layers.{over}." in key]
        assert bool(kept) == (over is not None)
        assert all(torch.equal(before[key], after[key]) for key in kept), rung
    assert all(error < errors["LR"] for rung, error in errors.items() if rung != "LR")


@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "mllama-last"])
@pytest.mark.parametrize("settings", [["solver.start=least-squares"], ["allocation=by-error"], ["allocation=owl"]])
def test_decoders_whose_blocks_hand_on_more_are_pruned_by_least_squares_and_with_an_allocation(
    name: str, settings: list[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    record = quick.prune(folders[name], tmp_path / "out", *settings, reconstruct="BR+GP", heldout="manual=4")
    assert record["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert reprune.verify(tmp_path / "out").passed


@pytest.mark.parametrize("name", ["gemma3n", "mllama-last", "glm_moe_dsa"])
@pytest.mark.parametrize("memory", [0, 2**30])
def test_a_run_that_was_cut_short_ends_with_the_same_bits(
    name: str, memory: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"reconstruct": "BR+GP+CR"}
    whole = quick.prune(folders[name], tmp_path / "whole", f"streams.memory={memory}", **options)

    class Stopper(reprune.Watcher):
        def window_done(self, window: Any, record: Any) -> None:
            if window.index == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick.prune(folders[name], tmp_path / "cut", f"streams.memory={memory}", watcher=Stopper(), **options)
    record = reprune.resume(tmp_path / "cut")
    assert record["blocks"] == whole["blocks"]
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_a_run_will_do_is_planned_too(folders: dict[str, Path]) -> None:
    plan = reprune.plan(folders["mllama"], pruner="wanda", sparsity="2:4", reconstruct="BR+GP")
    assert [bool(block.groups) for block in plan.survey.blocks] == [True, False, True]
    assert plan.survey.blocks[1].idle
    assert reprune.plan(folders["gemma3n"], pruner="wanda").survey.refusals == ()


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_a_blocks_error_counts_only_what_the_block_puts_out(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Not keys and values that earlier blocks have written or later ones will write."""
    record = quick.prune(folders[name], tmp_path / "out", reconstruct="LR")
    samples = quick.samples_of(folders[name], record)
    ids, (last, *_) = samples.calibration, reversed(record["blocks"])
    outputs = []
    for folder in (tmp_path / "out", folders[name]):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        model.model.layers[-1].register_forward_hook(lambda _, __, states: outputs.append(states.double()))
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    found, wanted = outputs
    difference = (found - wanted).square()
    assert last["calibration_error"] == pytest.approx(float(difference.mean()), rel=1e-3)
    relative = float(difference.sum() / wanted.square().sum())
    assert last["relative_calibration_error"] == pytest.approx(relative, rel=1e-3)
    work = tmp_path / "work"
    work.mkdir()
    compared = compare(Decoder(tmp_path / "out"), Decoder(folders[name]), ids, 3, 10**9, work).blocks[-1]
    assert compared.relative == pytest.approx(relative, rel=1e-3)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_so_do_the_errors_that_sparsity_is_allocated_by(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, by_error = list[Any](), allocate.by_error
    monkeypatch.setattr(allocate, "by_error", lambda *given: by_error(*(told.append(given) or given)))
    record = quick.prune(
        folders[name], tmp_path / "out", "allocation=by-error", reconstruct="LR", pruner="magnitude", heldout="manual=3"
    )
    (((*_, curve), *_),) = told
    ids, outputs = quick.samples_of(folders[name], record).heldout, []
    for level in (None, *(level for level, _ in curve)):
        model = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
        block = model.model.layers[-1]
        block.register_forward_hook(lambda _, __, states: outputs.append(states.double()))
        for matrix in record["blocks"][-1]["matrices"] if level else ():
            weight = block.get_submodule(matrix["name"]).weight.data
            weight *= Unstructured(level).keep(weight.abs(), "matrix")
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    dense, *sparse = outputs
    errors = [float((one - dense).square().sum() / dense.square().sum()) for one in sparse]
    assert [error for _, error in curve] == pytest.approx(errors, rel=1e-3)


def test_what_is_each_samples_own_is_gone_when_the_weights_outside_the_blocks_are_written(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take as much memory as all streams together."""
    made: list[weakref.ref[Tensor]] = []
    make, write = StreamStore.tensor, Result.write_outside

    def tensor(self: StreamStore, *of: Any) -> Tensor:
        made.append(weakref.ref(found := make(self, *of)))
        return found

    def write_outside(self: Result) -> dict[str, str]:
        assert made
        assert all(one() is None for one in made)
        return write(self)

    monkeypatch.setattr(StreamStore, "tensor", tensor)
    monkeypatch.setattr(Result, "write_outside", write_outside)
    quick.prune(folders["gemma4"], tmp_path / "out", reconstruct="BR+GP")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose blocks all read tokens that the first has chosen."""
    folder = odd.save("beside, chosen", tmp_path_factory.mktemp("chosen"))
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_no_error_counts_which_tokens_were_chosen(chosen: Path, tmp_path: Path) -> None:
    """They are places of tokens: the differences of such numbers mean nothing."""
    rung = "BR+GP+CR"
    record = quick.prune(chosen, tmp_path / "out", "solver.loss=standardized", reconstruct=rung, heldout="manual=3")
    samples, outputs = quick.samples_of(chosen, record), list[list[Tensor]]()
    for folder in (tmp_path / "out", chosen):
        model, seen = AutoModelForCausalLM.from_pretrained(folder).eval(), list[Tensor]()
        for block in model.model.layers:
            block.register_forward_hook(lambda _, __, made, seen=seen: seen.append(made[0].double()))
        with torch.no_grad():
            model(samples.calibration)
        outputs.append(seen)
    differences = [(one - other).square() for one, other in zip(*outputs, strict=True)]
    for block, difference in zip(record["blocks"], differences, strict=True):
        assert block["calibration_error"] == pytest.approx(float(difference.mean()), rel=1e-3)
    last = record["windows"][-1]
    assert last["calibration_error"]["after"] == pytest.approx(float(differences[-1].mean()), rel=1e-3)
    relative = float(differences[-1].sum() / outputs[1][-1].square().sum())
    assert record["blocks"][-1]["relative_calibration_error"] == pytest.approx(relative, rel=1e-3)
    work = tmp_path / "work"
    work.mkdir()
    compared = compare(Decoder(tmp_path / "out"), Decoder(chosen), samples.calibration, 3, 10**9, work).blocks[-1]
    assert compared.relative == pytest.approx(relative, rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        ["solver.teacher_forcing=0.5"],
        ["teacher=local"],
        ["allocation=by-error"],
        ["solver.start=least-squares"],
        ["distill.blocks=2"],
        ["streams.memory=0"],
    ],
)
def test_what_all_blocks_choose_by_is_carried_in_every_way_of_fitting(
    settings: list[str], chosen: Path, tmp_path: Path
) -> None:
    """Each state after the last block is as plain Transformers computes it, so `verify` passes."""
    record = quick.prune(chosen, tmp_path / "out", *settings, reconstruct="BR+GP", heldout="manual=3")
    assert record["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert reprune.verify(tmp_path / "out").passed


@pytest.mark.parametrize("quirk", ["beside, of tokens", "by name, of tokens"])
def test_errors_count_what_is_handed_on(quirk: odd.Quirk, tmp_path: Path) -> None:
    """A block's targets are everything that later blocks read of it, not only its hidden states."""
    odd.save(quirk, tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    record = quick.prune(tmp_path / "model", tmp_path / "out", reconstruct="BR+GP")
    assert record["blocks"][-1]["calibration_error"] > 0
    assert reprune.verify(tmp_path / "out").passed
