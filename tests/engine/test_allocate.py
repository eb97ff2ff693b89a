"""Sparsity is allocated to blocks by how much pruning each tolerates, once, before anything is pruned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import reprune
from reprune.engine import allocate
from reprune.errors import ChangedError, InputError
from reprune.math.patterns import Unstructured
from reprune.math.ranks import ALONE
from reprune.math.statistics import SquaredNorms
from reprune.planning.layers import resolve_recipe
from tests import tiny
from tests.engine import quick
from tests.engine.test_run import _block_outputs


def prune(model: Path, out: Path, *settings: str, **options: Any) -> dict[str, Any]:
    options = {"sparsity": "0.6", "reconstruct": "LR", "epochs": 1, "pruner": "wanda", **options}
    return quick.prune(model, out, *settings, **options)


def _told(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Record the arguments of each call to a function of the allocation."""
    told: list[Any] = []
    function = getattr(allocate, name)
    monkeypatch.setattr(allocate, name, lambda *given: function(*(told.append(given) or given)))
    return told


@pytest.mark.parametrize("name", ["owl", "by-error"])
@pytest.mark.parametrize("model", ["llama", "mixtral", "gpt2"])
def test_the_whole_has_the_sparsity_and_blocks_differ(name: str, model: str, tmp_path: Path) -> None:
    # With fewer, error curves may be such that equal shares are best.
    many = {"samples": 32, "heldout": "manual=16", "batch_size": 8}
    record = prune(tiny.save(model, tmp_path / "model"), tmp_path / "out", f"allocation={name}", **many)
    shares = []
    for block in record["blocks"]:
        (share,) = {float(matrix.get("pattern", 0.6)) for matrix in block["matrices"]}
        assert block["sparsity"] == pytest.approx(share, abs=1 / 64), "of rows of 32, whole weights"
        shares.append(share)
    assert sum(shares) / len(shares) == pytest.approx(0.6, abs=1e-5), "blocks are of one size"
    assert max(shares) - min(shares) > 0.005
    assert max(shares) - min(shares) < 2 * 0.08 + 1e-5, "the spread to either side"
    if name == "by-error":  # OWL's shares need not be centred on the whole's sparsity
        assert all(abs(share - 0.6) < 0.08 + 1e-5 for share in shares)
    assert record["sparsity"] == pytest.approx(0.6, abs=0.01)
    found = [block["sparsity"] for block in record["blocks"]]
    assert record["sparsity"] == pytest.approx(sum(found) / len(found), abs=1e-6)
    assert reprune.verify(tmp_path / "out").passed


def test_what_is_measured_by_error_is_each_block_pruned_alone_in_the_dense_model(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: whole models with one block pruned by magnitude, hooks on their blocks, and the relative error."""
    told = _told(monkeypatch, "by_error")
    settings = ("allocation=by-error", "allocation.spread=0.2", 'sparsity_by_name={"down_proj": 0.3}')
    record = prune(llama, tmp_path / "out", *settings, pruner="magnitude", exclude=["0.*"])
    ((curves, weights, sparsity),) = told
    ids = quick.samples_of(llama, record).heldout
    dense, shapes = _block_outputs(llama, ids), quick.tensors(llama)
    own = [name for name in shapes if ".layers.1." in name and "_proj." in name and "down_proj" not in name]
    one = sum(shapes[name].numel() for name in own)
    assert (weights, sparsity) == ([0, one, one], 0.6)
    for block in (1, 2):
        assert [level for level, _ in curves[block]] == pytest.approx([0.4, 0.6, 0.8])
        for level, error in curves[block]:
            model = AutoModelForCausalLM.from_pretrained(llama)
            for name, linear in model.model.layers[block].named_modules():
                if name.endswith("_proj"):
                    pattern = Unstructured(0.3 if name.endswith("down_proj") else level)
                    linear.weight.data *= pattern.keep(linear.weight.data.abs(), "matrix")
            difference = (_block_outputs(model, ids)[block] - dense[block]).double().square().sum()
            assert error == pytest.approx(float(difference / dense[block].double().square().sum()), rel=1e-4)


def test_a_block_is_dense_again_before_it_is_measured_at_another_sparsity(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the error at the middle sparsity does not depend on the others; SparseGPT changes the kept weights, too."""
    told = _told(monkeypatch, "by_error")
    for spread in ("0.1", "0.2"):
        prune(llama, tmp_path / spread, "allocation=by-error", f"allocation.spread={spread}", pruner="sparsegpt")
    near, far = (curves for curves, _, _ in told)
    assert [curve[1] for curve in near] == [curve[1] for curve in far]
    assert [curve[0] for curve in near] != [curve[0] for curve in far]


def test_what_is_measured_by_owl_is_outliers_among_all_scores_of_a_block_in_the_dense_model(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: hooks before the linears of the whole dense model, |w| times the root mean square of their inputs."""
    told = _told(monkeypatch, "by_outliers")
    record = prune(llama, tmp_path / "out", "allocation=owl", "allocation.outlier=2", "allocation.spread=0.1")
    ((shares, weights, sparsity, spread),) = told
    ids = quick.samples_of(llama, record).calibration
    model = AutoModelForCausalLM.from_pretrained(llama)
    scores: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for found, block in zip(scores, model.model.layers, strict=True):
        for name, linear in block.named_modules():
            if name.endswith("_proj"):
                linear.register_forward_pre_hook(
                    lambda linear, args, found=found: found.append(
                        (linear.weight.abs() * args[0].flatten(0, -2).square().mean(dim=0).sqrt()).flatten()
                    )
                )
    with torch.no_grad():
        model(ids)
    every = [torch.cat(found) for found in scores]
    assert shares == pytest.approx([float((one > 2 * one.mean()).double().mean()) for one in every], abs=2e-4)
    assert (weights, sparsity, spread) == ([len(one) for one in every], 0.6, 0.1)


def test_outliers_of_an_expert_are_by_the_tokens_that_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal inputs all scores are equal, whether many tokens reach an expert or one."""
    statistics = [SquaredNorms(3, torch.device("cpu")) for _ in range(2)]
    for some, tokens in zip(statistics, (100, 1), strict=True):
        some.update(torch.ones(tokens, 3))
    linear = SimpleNamespace(matrix=lambda: torch.ones(2, 3))
    pruned: Any = SimpleNamespace(block=None, groups=[SimpleNamespace(linears=[linear])] * 2)
    monkeypatch.setattr(allocate, "gathered", lambda *_: statistics)
    recipe = resolve_recipe("m", {}, settings=["allocation=owl", "allocation.outlier=1.5"])
    frontier: Any = SimpleNamespace(inputs=lambda *_: None, ranks=ALONE)
    entering: Any = None
    assert allocate._outliers(recipe, frontier, pruned, entering) == 0.0


def test_experts_that_few_tokens_reach_are_measured_as_they_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By magnitude, whatever the pruner."""
    told, model = _told(monkeypatch, "by_error"), tiny.save("mixtral", tmp_path / "model")
    for pruner in ("wanda", "magnitude"):
        settings = ("allocation=by-error", "pruner.min_tokens=100000")
        prune(model, tmp_path / pruner, *settings, pruner=pruner, include=["mlp.experts.*"])
    assert told[0] == told[1]


def test_shared_out_by_error_the_sum_of_errors_of_blocks_alone_is_lower(llama: Path, tmp_path: Path) -> None:
    """In windows of one block with a local teacher, an error is that of the block alone."""

    def total(record: dict[str, Any]) -> float:
        return sum(float(window["relative_heldout_error"]["after"]) for window in record["windows"])

    options = {"sparsity": "0.7", "heldout": "manual=8"}
    even = prune(llama, tmp_path / "even", **options)
    shared = prune(llama, tmp_path / "shared", "allocation=by-error", "allocation.spread=0.2", **options)
    assert total(shared) < total(even)


def test_linears_with_a_sparsity_of_their_own_take_no_part(llama: Path, tmp_path: Path) -> None:
    record = prune(llama, tmp_path / "out", "allocation=owl", 'sparsity_by_name={"down_proj": "2:4"}')
    for block in record["blocks"]:
        patterns = {matrix["name"]: matrix.get("pattern") for matrix in block["matrices"]}
        assert patterns.pop("mlp.down_proj") == "2:4"
        assert len(set(patterns.values())) == 1


@pytest.mark.parametrize("name", ["owl", "by-error"])
def test_a_block_that_a_name_gives_the_total_itself_takes_no_part(name: str, llama: Path, tmp_path: Path) -> None:
    settings = (f"allocation={name}", "allocation.spread=0.3", 'sparsity_by_name={"0.*": 0.5}')
    record = prune(llama, tmp_path / "out", *settings, sparsity="0.5")
    first, *others = [block["sparsity"] for block in record["blocks"]]
    assert first == 0.5
    assert sum(others) / len(others) == pytest.approx(0.5, abs=1 / 64)


def test_a_block_that_stays_dense_changes_nothing_for_the_others(llama: Path, tmp_path: Path) -> None:
    settings = ("allocation=owl", "allocation.outlier=2")
    record = prune(llama, tmp_path / "out", *settings, exclude=["0.*"])
    found = [block["sparsity"] for block in record["blocks"]]
    assert found[0] == 0
    assert abs(found[1] - found[2]) == pytest.approx(0.16, abs=1 / 32), (
        "the whole spread is between the two that are left"
    )


@pytest.mark.parametrize("name", ["owl", "by-error"])
@pytest.mark.parametrize("sparsity", ["0.004", "0.03", "0.995"])
def test_so_little_or_so_much_is_shared_out_too(
    name: str, sparsity: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = _told(monkeypatch, "by_error")
    record = prune(llama, tmp_path / "out", f"allocation={name}", sparsity=sparsity)
    assert record["sparsity"] == pytest.approx(float(sparsity), abs=0.02)
    for curve in (curve for curves, _, _ in told for curve in curves):
        levels = [level for level, _ in curve]
        assert 0 < levels[0] < levels[1] < levels[2] < 1, "measured on either side of it"
    assert reprune.verify(tmp_path / "out").passed


@pytest.mark.parametrize("name", ["owl", "by-error"])
def test_where_names_decide_on_all_there_is_nothing_to_share_out(name: str, llama: Path, tmp_path: Path) -> None:
    record = prune(llama, tmp_path / "out", f"allocation={name}", 'sparsity_by_name={"*": 0.25}')
    assert all(block["sparsity"] == 0.25 for block in record["blocks"])


def test_a_run_goes_on_with_the_shares_that_it_began_with(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prune(llama, tmp_path / "whole", "allocation=by-error")

    class Stopper(reprune.Watcher):
        def window_done(self, window: Any, record: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(llama, tmp_path / "broken", "allocation=by-error", watcher=Stopper())
    monkeypatch.setattr("reprune.engine.run.allocate", lambda *_: pytest.fail("they are measured once"))
    assert reprune.resume(tmp_path / "broken")["blocks"] == whole["blocks"]
    kept = tmp_path / "broken" / "recipe.yaml"
    assert yaml.safe_load(kept.read_text())["allocation"]["name"] == "by-error"


def test_shares_of_a_model_that_changes_while_they_are_measured_are_not_kept(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, measure = shutil.copytree(llama, tmp_path / "model"), allocate.allocate

    def changing(*given: Any) -> list[float]:
        found = measure(*given)
        with (model / "config.json").open("a") as file:
            file.write("\n")
        return found

    monkeypatch.setattr("reprune.engine.run.allocate", changing)
    with pytest.raises(ChangedError, match=r"config\.json: was changed or replaced"):
        prune(model, tmp_path / "out", "allocation=owl")
    assert not (tmp_path / "out" / ".reprune" / "allocation.json").exists()


def test_damaged_shares_are_refused(llama: Path, tmp_path: Path) -> None:
    class Stopper(reprune.Watcher):
        def window_done(self, window: Any, record: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(llama, tmp_path / "out", "allocation=owl", watcher=Stopper())
    file = tmp_path / "out" / ".reprune" / "allocation.json"
    written = file.read_text()
    first = json.dumps(json.loads(written)["sparsities"][0])
    file.write_text(written.replace(first, "0.25", 1))
    with pytest.raises(InputError, match=r"allocation\.json: damaged"):
        reprune.resume(tmp_path / "out")


def test_a_pattern_of_groups_cannot_be_shared_out(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"allocation owl shares out a fraction such as 0\.6 over the blocks, but 2:4"):
        prune(llama, tmp_path / "out", "allocation=owl", sparsity="2:4")
    assert not (tmp_path / "out").exists()
