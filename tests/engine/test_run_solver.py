"""The settings of the solver and the guard take effect in a run: losses, precision, rank, memory, early stopping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig

import reprune
from reprune.engine.frontier import Frontier
from reprune.math.adam import Adam, Descent
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Epoch, Objective
from tests import tiny
from tests.engine.conftest import Once
from tests.engine.quick import prune, samples_of, tensors
from tests.engine.test_run import _block_outputs


def test_the_guard_never_ends_a_window_worse_than_it_began(llama: Path, tmp_path: Path) -> None:
    record = prune(llama, tmp_path / "out", reconstruct="BR+GP", lr=0.5)
    for window in record["windows"]:
        assert window["heldout_error"]["after"] <= window["heldout_error"]["before"] * (1 + 1e-6)
    assert any(window["kept_epoch"] == 0 for window in record["windows"])


OVERFIT = {
    "samples": 8,
    "heldout": "manual=8",
    "epochs": 30,
    "lr": 3e-3,
    "batch_size": 3,
    "reconstruct": "BR+GP+CR",
}


def course(window: dict[str, Any], measure: str) -> list[float]:
    """The held-out error at the start and after each epoch."""
    key = f"{measure}_heldout_error"
    return [window[key]["before"], *(epoch[key] for epoch in window["epochs"])]


def test_the_guard_stops_what_overfits(llama: Path, tmp_path: Path) -> None:
    """In 30 epochs on 8 samples, the paper's procedure lowers calibration error at the cost of held-out error."""
    plain = prune(llama, tmp_path / "plain", "guard=off", **OVERFIT)
    last = plain["windows"][-1]
    assert last["calibration_error"]["after"] < 0.8 * last["calibration_error"]["before"]
    assert last["heldout_error"]["after"] > 1.01 * last["heldout_error"]["before"], "it overfits, or this shows nothing"
    assert last["guard"] == {
        "on": False,
        "planned_epochs": 30,
        "run_epochs": 30,
        "stopped_early": False,
        "restored": False,
        "failures": [],
        **{
            f"{measure}_heldout_error": dict.fromkeys(("last", "kept"), last["epochs"][-1][f"{measure}_heldout_error"])
            for measure in ("relative", "standardized")
        },
    }

    guarded = prune(llama, tmp_path / "guarded", **OVERFIT)
    for window in guarded["windows"]:
        guard, relative, judged = window["guard"], course(window, "relative"), course(window, "standardized")
        assert window["heldout_error"]["after"] <= window["heldout_error"]["before"] * (1 + 1e-6)
        assert window["kept_epoch"] == min(range(len(judged)), key=lambda n: (relative[n] > relative[0], judged[n]))
        assert window["standardized_heldout_error"]["after"] == pytest.approx(judged[window["kept_epoch"]], rel=1e-5)
        assert guard["on"]
        for measure, path in (("relative", relative), ("standardized", judged)):
            assert guard[f"{measure}_heldout_error"] == {"last": path[-1], "kept": path[window["kept_epoch"]]}
        assert guard["run_epochs"] == len(window["epochs"]) == min(30, judged.index(min(judged[1:]), 1) + 2)
        assert guard["stopped_early"] == (len(window["epochs"]) < 30)
        assert guard["restored"] == (window["kept_epoch"] < len(window["epochs"]))
    assert any(window["guard"]["stopped_early"] for window in guarded["windows"])
    assert guarded["blocks"][-1]["heldout_error"] < 0.95 * plain["blocks"][-1]["heldout_error"]
    assert guarded["blocks"][-1]["calibration_error"] > plain["blocks"][-1]["calibration_error"], "the pitfall"


def test_auto_chooses_for_each_window_and_does_not_overfit(llama: Path, tmp_path: Path) -> None:
    steep = {**OVERFIT, "lr": 3e-2}  # so that every rung overfits, and no single choice is best for all windows
    fixed = {
        rung: prune(llama, tmp_path / rung, "guard=off", **{**steep, "reconstruct": rung})["blocks"][-1]
        for rung in ("LR", "BR", "BR+GP", "BR+GP+CR")
    }
    record = prune(llama, tmp_path / "auto", **{**steep, "reconstruct": "auto"})
    chosen = [window["reconstructed"] for window in record["windows"]]
    for window, blocks in zip(record["windows"], chosen, strict=True):
        errors = window["relative_heldout_error"]
        assert errors["after"] <= errors["before"] * (1 + 1e-6)
        assert blocks in ([], window["blocks"][-1:], window["blocks"])
        trained = [epoch["blocks"] for epoch in window["epochs"]]
        assert trained == sorted(trained, key=len)
        assert window["blocks"][-1:] in trained
        assert window["blocks"] in trained
    assert {window["loss"] for window in record["windows"]} == {"standardized"}
    solver = record["recipe"]["solver"]
    assert (solver["loss"], solver["lr"]) == ("standardized", steep["lr"])  # the record has what was used
    assert len({len(blocks) for blocks in chosen}) > 1, "one choice for all windows would show nothing"
    assert record["blocks"][-1]["heldout_error"] < min(last["heldout_error"] for last in fixed.values())


def test_reconstructed_names_the_blocks_that_changed(llama: Path, once: Once, tmp_path: Path) -> None:
    """The twin: compare the weights of LR with those of auto."""
    _, plain = once(llama, pruner="magnitude", reconstruct="LR")
    record = prune(llama, tmp_path / "auto", pruner="magnitude", reconstruct="auto", lr=3e-2)
    before, after = tensors(plain), tensors(tmp_path / "auto")
    changed = {index for window in record["windows"] for index in window["reconstructed"]}
    for index in range(3):
        differ = any(not torch.equal(before[key], after[key]) for key in before if f"layers.{index}." in key)
        assert differ == (index in changed)


@pytest.mark.parametrize("rung", ["BR+GP+CR", "auto"])
def test_checkpointing_changes_no_bit(llama: Path, rung: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune(llama, tmp_path / "plain", reconstruct=rung)
    run, kept = Frontier.run, set[bool]()

    def noted(self: Frontier, blocks: Any, states: torch.Tensor, samples: Any, *how: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            kept.add(how[0])
        return run(self, blocks, states, samples, *how)

    monkeypatch.setattr(Frontier, "run", noted)
    prune(llama, tmp_path / "checkpointing", "solver.checkpointing=true", reconstruct=rung)
    assert kept == {True}
    one, two = tensors(tmp_path / "plain"), tensors(tmp_path / "checkpointing")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_standardized_loss_is_fitted_and_judged_in_its_own_measure(llama: Path, tmp_path: Path) -> None:
    # Enough samples for both measures to fall: the guard keeps no epoch in which either has risen.
    options = {"reconstruct": "BR+GP+CR", "samples": 32, "heldout": "manual=16", "batch_size": 8}
    plain = prune(llama, tmp_path / "plain", **options)
    record = prune(llama, tmp_path / "standardized", "solver.loss=standardized", **options)
    assert [window["loss"] for window in record["windows"]] == ["standardized"] * len(record["windows"])
    assert [window["loss"] for window in plain["windows"]] == ["squared"] * len(plain["windows"])
    for window in record["windows"]:
        path = course(window, "relative")
        assert path == course(window, "standardized")
        assert window["kept_epoch"] == path.index(min(path))
        # The error afterwards is that of the kept epoch, except for rounding to the saved dtype.
        assert window["relative_heldout_error"]["after"] == pytest.approx(min(path), rel=1e-3)
    for window in plain["windows"]:
        assert course(window, "relative") != course(window, "standardized")
    # A window's plain error and that of its retired block are in the same measure.
    last, block = record["windows"][-1], record["blocks"][-1]
    assert last["calibration_error"]["after"] == pytest.approx(block["calibration_error"], rel=1e-5)
    assert last["relative_calibration_error"]["after"] != pytest.approx(block["relative_calibration_error"], rel=1e-3)


def test_how_much_of_the_power_one_feature_has_is_on_record(llama: Path, once: Once, tmp_path: Path) -> None:
    """Of the dense model's states after each block, on the samples that are calibrated on."""
    plain = prune(llama, tmp_path / "plain", reconstruct="BR+GP")
    for window, states in zip(
        plain["windows"], _block_outputs(llama, samples_of(llama, plain).calibration), strict=True
    ):
        powers = states.double().square().flatten(0, 1).mean(0)
        assert window["largest_feature"] == pytest.approx(float(powers.max() / powers.sum()), rel=1e-5)
    assert once(llama, reconstruct="LR")[0]["windows"][0]["largest_feature"] is None


def test_without_a_descent_there_is_nothing_to_standardize(llama: Path, once: Once, tmp_path: Path) -> None:
    plain, _ = once(llama, reconstruct="LR")
    record = prune(llama, tmp_path / "standardized", "solver.loss=standardized", reconstruct="LR")
    assert record["windows"][0]["loss"] == "squared"
    assert record["blocks"] == plain["blocks"]


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_end_at_the_same_weights(
    llama: Path, micro: int, once: Once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more samples than one holds pass through a block at a time, whatever for."""
    _, whole = once(llama, reconstruct="BR+GP", pruner="magnitude")
    run, sizes = Frontier.run, set[int]()

    def noted(self: Frontier, blocks: Any, states: torch.Tensor, samples: Any, *how: Any) -> torch.Tensor:
        sizes.add(len(states))
        return run(self, blocks, states, samples, *how)

    monkeypatch.setattr(Frontier, "run", noted)
    prune(llama, tmp_path / "parts", f"solver.micro_batch_size={micro}", reconstruct="BR+GP", pruner="magnitude")
    assert max(sizes) == micro
    one, two = tensors(whole), tensors(tmp_path / "parts")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-4)


@pytest.fixture
def descents(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool, bool]]:
    """The seed of each descent, whether its loss is scaled up for gradients in float16, and if it is standardized."""
    found: list[tuple[int, bool, bool]] = []
    descend = Adam.descend

    def noted(self: Adam, problem: Objective, start: Error, seed: int, progress: Callable[[Epoch], None]) -> Descent:
        found.append((seed, problem.half, problem.scale is not None))
        return descend(self, problem, start, seed, progress)

    monkeypatch.setattr(Adam, "descend", noted)
    return found


def test_each_fit_draws_by_the_runs_seed_and_as_no_other(
    llama: Path, tmp_path: Path, descents: list[tuple[int, bool, bool]]
) -> None:
    for seed in (0, 1):
        prune(llama, tmp_path / str(seed), "distill=1", reconstruct="BR+GP", epochs=1, seed=seed)
    assert len(descents) == len({seed for seed, *_ in descents}) == 2 * (3 + 1)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_losses_are_scaled_up_where_gradients_are_in_float16(
    llama: Path, precision: str, tmp_path: Path, descents: list[tuple[int, bool, bool]]
) -> None:
    prune(llama, tmp_path / "out", "distill=1", f"precision={precision}", reconstruct="auto", epochs=1)
    assert [half for _, half, _ in descents] == [precision == "float16"] * (1 + 2 + 2 + 1 + 1)


@pytest.mark.parametrize("loss", ["squared", "standardized"])
def test_a_windows_last_block_alone_and_all_its_blocks_are_fitted_by_the_same_loss(
    llama: Path, loss: str, tmp_path: Path, descents: list[tuple[int, bool, bool]]
) -> None:
    prune(llama, tmp_path / "out", f"solver.loss={loss}", reconstruct="auto", epochs=1)
    assert [standardized for *_, standardized in descents] == [loss == "standardized"] * (1 + 2 + 2 + 1)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_products_in_half_precision_come_near_those_in_full(llama: Path, precision: str, tmp_path: Path) -> None:
    full, half = (
        prune(llama, tmp_path / name, f"precision={name}", "guard=off")  # the guard might keep different epochs
        for name in ("float32", precision)
    )
    for kind in ("calibration", "heldout"):
        assert half["blocks"][-1][f"{kind}_error"] == pytest.approx(full["blocks"][-1][f"{kind}_error"], rel=0.05)
    assert half["windows"][0]["calibration_error"]["after"] < half["windows"][0]["calibration_error"]["before"]


@pytest.mark.parametrize("rung", ["BR+GP+CR", "auto"])
def test_low_rank_updates_reconstruct_too(llama: Path, rung: str, once: Once, tmp_path: Path) -> None:
    plain, out = once(llama, pruner="magnitude", reconstruct="LR")
    options = {"pruner": "magnitude", "reconstruct": rung, "lr": 1e-2, "epochs": 4}
    record = prune(llama, tmp_path / "low", "solver.rank=2", **options)
    assert record["blocks"][-1]["calibration_error"] < 0.9 * plain["blocks"][-1]["calibration_error"]
    assert record["sparsity"] == plain["sparsity"]
    before, after = tensors(out), tensors(tmp_path / "low")
    for key in (key for key in before if "proj" in key):
        assert torch.equal(before[key] == 0, after[key] == 0)
    reprune.prune(llama, tmp_path / "again", recipe=tmp_path / "low" / "recipe.yaml")
    again = tensors(tmp_path / "again")
    assert all(torch.equal(after[key], again[key]) for key in after)


@pytest.mark.parametrize("rung", ["BR+GP+CR", "auto"])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_compact_is_the_same_run_with_less_memory(rung: str, model: str, tmp_path: Path) -> None:
    folder = tiny.save(model, tmp_path / "model")
    options = {"pruner": "magnitude", "reconstruct": rung, "lr": 1e-2, "epochs": 2}
    plain = prune(folder, tmp_path / "plain", **options)
    compact = prune(folder, tmp_path / "compact", "solver.compact=true", **options)
    for one, other in zip(plain["windows"], compact["windows"], strict=True):
        assert other["calibration_error"]["after"] == pytest.approx(one["calibration_error"]["after"], rel=1e-3)
        assert other["calibration_error"]["after"] < 0.9 * other["calibration_error"]["before"] or one["index"] > 0
    before, after = tensors(tmp_path / "plain"), tensors(tmp_path / "compact")
    for key in before:
        assert torch.equal(before[key] == 0, after[key] == 0), key


def test_a_relative_rate_of_a_block_that_stays_dense_is_a_share_of_its_linears(tmp_path: Path) -> None:
    """Mamba's other matrices, such as A_log, are many times as large."""
    config = MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "mamba")
    tiny.tokenizer().save_pretrained(tmp_path / "mamba")
    record = prune(tmp_path / "mamba", tmp_path / "out", "include=[0.*]", reconstruct="BR+GP", lr="1%")
    linears = [one.weight.detach() for one in model.backbone.layers[1].modules() if isinstance(one, nn.Linear)]
    rms = torch.cat([weight.flatten() for weight in linears]).square().mean().sqrt()
    assert record["windows"][1]["epochs"][0]["lr"] == pytest.approx(0.01 * float(rms), rel=1e-5)
