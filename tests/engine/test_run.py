"""A run does what the paper says: fixed masks, exact zeros, untouched embeddings, errors that follow the ladder."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import reprune
from tests import tiny
from tests.engine.conftest import Once
from tests.engine.quick import prune, samples_of, tensors

RUNGS = ("LR", "BR", "BR+GP", "BR+GP+CR", "auto")


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize(
    ("pruner", "sparsity", "rung"), [("sparsegpt", "0.5", "BR+GP+CR"), ("wanda", "2:4", "LR")], ids=["CR", "LR"]
)
def test_every_architecture_is_pruned_from_disk_to_disk(
    name: str, pruner: str, sparsity: str, rung: str, tmp_path: Path
) -> None:
    model = tiny.save(name, tmp_path / "model")
    record = prune(model, tmp_path / "out", pruner=pruner, sparsity=sparsity, reconstruct=rung)
    dense, sparse = tensors(model), tensors(tmp_path / "out")
    assert dense.keys() == sparse.keys()
    assert all(dense[key].shape == sparse[key].shape and dense[key].dtype == sparse[key].dtype for key in dense)
    assert record["sparsity"] == pytest.approx(0.5, abs=0.01)
    for block in record["blocks"]:
        for matrix in block["matrices"]:
            assert matrix["sparsity"] == pytest.approx(0.5, abs=0.01)
    outside = [key for key in dense if not any(f".{index}." in f".{key}" for index in range(3))]
    assert outside
    assert all(torch.equal(dense[key], sparse[key]) for key in outside), "only blocks may change"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tiny.tokenizer()("The yield statement suspends")["input_ids"]])
    with torch.no_grad():
        assert torch.isfinite(loaded(ids).logits).all()


@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "sparsegpt"])
def test_calibration_error_falls_along_the_ladder(llama: Path, pruner: str, once: Once, tmp_path: Path) -> None:
    errors = [once(llama, pruner=pruner, reconstruct="LR")[0]["blocks"][-1]]
    errors += [
        prune(llama, tmp_path / rung, "guard=off", pruner=pruner, reconstruct=rung, epochs=6)["blocks"][-1]
        for rung in RUNGS[1:4]
    ]
    calibration = [error["calibration_error"] for error in errors]
    assert all(lower < higher for higher, lower in pairwise(calibration))


@pytest.mark.parametrize(
    ("rung", "saved"), [*((rung, torch.float32) for rung in RUNGS), ("LR", torch.bfloat16), ("auto", torch.bfloat16)]
)
def test_the_recorded_block_errors_are_those_of_the_saved_model(
    rung: str, saved: torch.dtype, llama: Path, once: Once, tmp_path: Path
) -> None:
    """The twin: whole models, hooks on their blocks, and the paper's formula."""
    model = llama if saved == torch.float32 else tiny.save("llama", tmp_path / "model", saved)
    record, out = once(model, reconstruct=rung)
    drawn = samples_of(model, record)
    for kind, ids in (("calibration", drawn.calibration), ("heldout", drawn.heldout)):
        dense, sparse = (_block_outputs(folder, ids) for folder in (model, out))
        for block, target, output in zip(record["blocks"], dense, sparse, strict=True):
            difference = (target - output).double().square()
            assert block[f"{kind}_error"] == pytest.approx(float(difference.mean()), rel=1e-4)
            relative = float(difference.sum() / target.double().square().sum())
            assert block[f"relative_{kind}_error"] == pytest.approx(relative, rel=1e-4)


@torch.no_grad()
def _block_outputs(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of each block of a model, or of the model in a folder."""
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) if isinstance(model, Path) else model
    seen: list[torch.Tensor] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    model(ids)
    return seen


@pytest.mark.parametrize("size", [1, 2])
def test_a_local_teachers_targets_are_what_dense_blocks_make_of_the_sparse_stream(
    llama: Path, size: int, tmp_path: Path
) -> None:
    """The twin: the saved model, and the same with a dense last block, which is the last window."""
    record = prune(llama, tmp_path / "out", f"schedule.size={size}", "schedule.stride=1", reconstruct="BR")
    window = record["windows"][-1]
    assert window["blocks"] == [2]
    drawn = samples_of(llama, record)
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    dense = AutoModelForCausalLM.from_pretrained(llama)
    teacher.model.layers[2].load_state_dict(dense.model.layers[2].state_dict())
    for kind, ids in (("calibration", drawn.calibration), ("heldout", drawn.heldout)):
        target, output = _block_outputs(teacher, ids)[2], _block_outputs(tmp_path / "out", ids)[2]
        difference = float((target - output).double().square().mean())
        assert window[f"{kind}_error"]["after"] == pytest.approx(difference, rel=1e-4)


def test_masks_are_fixed_during_reconstruction(llama: Path, once: Once, tmp_path: Path) -> None:
    """What magnitude pruning sets to zero does not depend on the rung, and training adds no zeros."""
    _, plain = once(llama, pruner="magnitude", reconstruct="LR")
    prune(llama, tmp_path / "cr", pruner="magnitude", reconstruct="BR+GP+CR", lr=1e-2)
    before, after = tensors(plain), tensors(tmp_path / "cr")
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert any("layernorm" in key for key in changed), "norms are trained too"
    for key in (key for key in changed if "proj" in key):
        assert torch.equal(before[key] == 0, after[key] == 0)


def test_biases_of_the_window_are_trained(tmp_path: Path) -> None:
    model = tiny.save("llama-tied-bias", tmp_path / "model")
    prune(model, tmp_path / "out", reconstruct="BR")
    dense, sparse = tensors(model), tensors(tmp_path / "out")
    biases = [key for key in dense if key.endswith("proj.bias")]
    assert biases
    # A bias of the keys shifts all scores of a query by the same amount, so its gradient is zero up to rounding.
    assert all(not torch.equal(dense[key], sparse[key]) for key in biases if "k_proj" not in key)


def test_the_statistics_come_from_the_sparse_stream(llama: Path, once: Once) -> None:
    """The twin: Wanda on block 1, scored by hand with inputs that passed through the pruned block 0."""
    record, out = once(llama, pruner="wanda", reconstruct="LR")
    ids = samples_of(llama, record).calibration
    dense, sparse = tensors(llama), tensors(out)
    half_pruned = AutoModelForCausalLM.from_pretrained(llama)
    half_pruned.load_state_dict(
        {key: sparse[key] if "layers.0." in key else value for key, value in dense.items()}, strict=False
    )
    seen: list[torch.Tensor] = []
    query = half_pruned.model.layers[1].self_attn.q_proj
    query.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        half_pruned(ids)
    norms = seen[0].reshape(-1, seen[0].shape[-1]).double().norm(dim=0)
    scores = dense["model.layers.1.self_attn.q_proj.weight"].double().abs() * norms
    kept = scores.argsort(dim=1, descending=True)[:, : scores.shape[1] // 2].sort(dim=1).values
    ours = [row.nonzero().flatten() for row in sparse["model.layers.1.self_attn.q_proj.weight"]]
    assert torch.equal(kept, torch.stack(ours))


@pytest.mark.parametrize("pattern", ["1:4", "4:8", "3:4"])
def test_any_pattern_that_divides_holds_in_every_group(llama: Path, pattern: str, tmp_path: Path) -> None:
    prune(llama, tmp_path / "out", sparsity=pattern, reconstruct="BR+GP")
    kept, of = map(int, pattern.split(":"))
    matrices = [tensor for key, tensor in tensors(tmp_path / "out").items() if key.endswith("proj.weight")]
    assert matrices
    for matrix in matrices:
        assert ((matrix.reshape(-1, of) != 0).sum(dim=1) == kept).all()


def test_any_window_size_and_stride_runs(llama: Path, tmp_path: Path) -> None:
    for rung in ("BR+GP", "auto"):
        record = prune(llama, tmp_path / rung, "schedule.size=3", reconstruct=rung)
        assert [window["blocks"] for window in record["windows"]] == [[0], [0, 1], [0, 1, 2], [1, 2], [2]]
        for one, following in pairwise(record["windows"][2:]):  # the last block is in each: targets are the same
            for key in ("calibration_error", "heldout_error"):
                assert following[key]["before"] == pytest.approx(one[key]["after"], rel=1e-5)
    record = prune(llama, tmp_path / "2", "schedule.size=2", "schedule.stride=2", reconstruct="BR")
    assert [window["blocks"] for window in record["windows"]] == [[0, 1], [2]]
    assert [block["index"] for block in record["blocks"]] == [0, 1, 2]


def test_a_window_of_several_blocks_records_each_blocks_own_error(llama: Path, once: Once, tmp_path: Path) -> None:
    together = prune(
        llama, tmp_path / "3", "schedule.size=3", "schedule.stride=3", "solver.name=none", reconstruct="BR"
    )
    alone, _ = once(llama, reconstruct="LR")
    for one, other in zip(together["blocks"], alone["blocks"], strict=True):
        assert one["calibration_error"] == pytest.approx(other["calibration_error"], rel=1e-5)


def test_the_written_recipe_gives_the_same_bits_again(llama: Path, tmp_path: Path) -> None:
    prune(llama, tmp_path / "one", reconstruct="BR+GP+CR", seed=7)
    reprune.prune(llama, tmp_path / "two", recipe=tmp_path / "one" / "recipe.yaml")
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_streams_on_disk_give_the_same_bits_as_in_memory(llama: Path, once: Once, tmp_path: Path) -> None:
    _, in_memory = once(llama, reconstruct="BR+GP+CR")
    prune(llama, tmp_path / "disk", "streams.memory=0B", reconstruct="BR+GP+CR")
    one, two = tensors(in_memory), tensors(tmp_path / "disk")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not (tmp_path / "disk" / ".reprune").exists()


def test_the_result_keeps_the_dtype_and_records_what_is_saved(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model", dtype=torch.bfloat16)
    record = prune(model, tmp_path / "out", reconstruct="BR+GP", pruner="wanda")
    saved = tensors(tmp_path / "out")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    pruned = [tensor for key, tensor in saved.items() if key.endswith("proj.weight")]
    zeros = sum(int((tensor == 0).sum()) for tensor in pruned)
    assert record["sparsity"] == pytest.approx(zeros / sum(tensor.numel() for tensor in pruned), abs=1e-12)


def test_sequential_statistics_are_a_choice(llama: Path, once: Once, tmp_path: Path) -> None:
    _, plain = once(llama, pruner="wanda", reconstruct="LR")
    prune(llama, tmp_path / "sequential", "pruner.sequential=true", pruner="wanda", reconstruct="LR")
    one, two = tensors(plain), tensors(tmp_path / "sequential")
    first, last = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(one[first], two[first])
    assert not torch.equal(one[last], two[last])


def test_excluded_linears_stay_dense(llama: Path, tmp_path: Path) -> None:
    record = prune(llama, tmp_path / "out", "exclude=[down_proj]", reconstruct="LR")
    dense, sparse = tensors(llama), tensors(tmp_path / "out")
    down = [key for key in dense if "down_proj" in key]
    assert all(torch.equal(dense[key], sparse[key]) for key in down)
    assert all("down_proj" not in matrix["name"] for block in record["blocks"] for matrix in block["matrices"])


@pytest.mark.parametrize(("excluded", "trained"), [("0.*", {1, 2}), ("1.*", {0, 1, 2})])
def test_what_stays_dense_is_trained_where_there_is_an_error(
    excluded: str, trained: set[int], llama: Path, tmp_path: Path
) -> None:
    """As docs/pruning.md says, this includes norms and excluded blocks."""
    prune(llama, tmp_path / "out", f"exclude=[{excluded}]", "guard=off", reconstruct="BR+GP")
    dense, sparse = tensors(llama), tensors(tmp_path / "out")
    for index in range(3):
        own = [key for key in dense if f".{index}." in key]
        assert [torch.equal(dense[key], sparse[key]) for key in own] == [index not in trained] * len(own)


@pytest.fixture
def pruned_before(llama: Path, once: Once, tmp_path: Path) -> Path:
    """A model of whose attention half is zero, with nothing that says why."""
    first = shutil.copytree(once(llama, only="attention", reconstruct="LR")[1], tmp_path / "first")
    (first / "reprune.json").unlink()
    return first


@pytest.mark.parametrize("settings", [(), ("solver.compact=true",), ("solver.rank=4",), ("distill=1",)])
def test_what_was_pruned_before_and_is_not_now_keeps_its_zeros(
    settings: tuple[str, ...], pruned_before: Path, tmp_path: Path
) -> None:
    record = prune(pruned_before, tmp_path / "second", "guard=off", *settings, only="mlp", reconstruct="BR+GP+CR")
    first, second = tensors(pruned_before), tensors(tmp_path / "second")
    attention = [key for key in first if "self_attn" in key]
    assert not any(torch.equal(first[key], second[key]) for key in attention)
    assert all(torch.equal(first[key] == 0, second[key] == 0) for key in attention)
    names = ", ".join(f"self_attn.{letter}_proj" for letter in "qkvo")
    said = "not pruned, but a quarter or more is zero, as after an earlier pruning: the zeros stay"
    notes = [[f"block {index}, {names}: {said}"] for index in range(3)]
    assert [window["notes"] for window in record["windows"]] == [*notes, []]


def test_such_zeros_stay_where_nothing_but_distillation_would_fill_them_too(
    pruned_before: Path, tmp_path: Path
) -> None:
    for blocks in (0, 1):
        record = prune(
            pruned_before, tmp_path / f"{blocks}", f"distill={blocks}", "guard=off", only="mlp", reconstruct="LR"
        )
        assert [len(window["notes"]) for window in record["windows"]] == [blocks] * 3
    first, second = tensors(pruned_before), tensors(tmp_path / "1")
    for key in (key for key in first if "layers.2.self_attn" in key):
        assert not torch.equal(first[key], second[key])
        assert torch.equal(first[key] == 0, second[key] == 0)


def test_zeros_of_rounding_to_four_bits_are_trained(llama: Path, tmp_path: Path) -> None:
    """As in GGUF's Q4_0 and Q3_K, up to 17 % of a matrix that was never pruned is zero."""
    weights = tensors(llama)
    attention = [key for key in weights if "self_attn" in key]
    for key in attention:
        weights[key][weights[key].abs() < weights[key].abs().quantile(0.17)] = 0
    shutil.copytree(llama, tmp_path / "rounded")
    save_file(weights, tmp_path / "rounded" / "model.safetensors", metadata={"format": "pt"})
    record = prune(tmp_path / "rounded", tmp_path / "out", "guard=off", only="mlp", reconstruct="BR+GP")
    found = tensors(tmp_path / "out")
    assert all((weights[key] == 0).double().mean() > 0.16 for key in attention)
    assert all((found[key] != 0).all() for key in attention)
    assert not any(window["notes"] for window in record["windows"])


def test_the_rate_goes_by_what_is_pruned_in_this_run(llama: Path, pruned_before: Path, tmp_path: Path) -> None:
    mlp = {"only": "mlp", "pruner": "magnitude", "reconstruct": "BR+GP", "lr": "1%", "epochs": 1}
    records = [prune(model, tmp_path / f"of-{model.name}", **mlp) for model in (llama, pruned_before)]
    rates = [[window["epochs"][0]["lr"] for window in record["windows"]] for record in records]
    assert rates[0] == rates[1]


@pytest.mark.parametrize(("only", "dense"), [("attention", "mlp"), ("mlp", "self_attn")])
def test_only_a_part_of_each_block_can_be_pruned(llama: Path, only: str, dense: str, once: Once) -> None:
    record, out = once(llama, only=only, reconstruct="LR")
    assert record["recipe"]["only"] == only
    one, other = tensors(llama), tensors(out)
    for key in (key for key in one if "proj" in key):
        assert torch.equal(one[key], other[key]) == (dense in key)
    names = {matrix["name"] for block in record["blocks"] for matrix in block["matrices"]}
    assert names
    assert not any(dense in name for name in names)


def test_what_was_not_done_by_the_plain_rule_is_on_record(llama: Path, tmp_path: Path) -> None:
    """Two samples of four tokens cannot give a Gram matrix of full rank, and so little damping does not help."""
    tight = {"samples": 1, "seqlen": 4, "reconstruct": "LR", "pruner": "sparsegpt"}
    record = prune(llama, tmp_path / "out", "pruner.damping=1e-12", **tight)
    notes = [note for window in record["windows"] for note in window["notes"]]
    assert any(re.match(r"block 0, .*: damping raised from 1e-12 to .*near singular", note) for note in notes)
    plain = prune(llama, tmp_path / "plain", **{**tight, "samples": 16, "seqlen": 64})
    assert not [note for window in plain["windows"] for note in window["notes"]]
