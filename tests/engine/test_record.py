"""A record says what was done, in which measure, and on which device."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reprune.engine import record
from reprune.engine.record import (
    block_record,
    exchange_record,
    full_record,
    machine,
    versions,
    window_record,
)
from reprune.engine.window import PrunedBlock
from reprune.math.patterns import Unstructured
from reprune.math.ranks import ALONE, Traffic
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Epoch, Errors, Failure, Fit
from reprune.math.standardization import FeatureStatistics
from reprune.model.linears import Linear
from reprune.planning.choice import Choice
from reprune.planning.layers import resolve_recipe
from reprune.planning.schedule import windows
from reprune.planning.sparsities import Sparsities

CARDS = ["Tesla T4", "A100"]


@pytest.mark.parametrize(("device", "name"), [("cuda", "Tesla T4"), ("cuda:1", "A100"), ("cpu", "cpu")])
def test_the_device_is_the_one_that_was_named(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARDS[torch.device(device).index or 0])
    assert machine(device)["device"] == name


def _window(
    kept: int, *, alone: int = 0, loss: str = "squared", guarded: bool = True, planned: int = 4
) -> dict[str, Any]:
    """The record of a window of blocks 0 and 1 after three epochs, the first `alone` of them on its last block alone.

    Errors before are 1 to 6, those after 11 to 16; the epochs' are 0.5, 0.3, 0.4, and ten times that for the guard.
    """
    before = Errors(Error(1.0, 2.0, 3.0), Error(4.0, 5.0, 6.0))
    after = Errors(Error(11.0, 12.0, 13.0), Error(14.0, 15.0, 16.0))
    epochs = tuple(
        Epoch(number, number / 10, error, 10 * error, 0.02, 0.2, 5, number <= alone)
        for number, error in enumerate((0.5, 0.3, 0.4), 1)
    )
    fit = Fit(before, epochs, planned, kept, guarded, 0.3)
    solver = resolve_recipe(
        "model", {"reconstruct": "BR+GP+CR"}, settings=[f"solver.loss={loss}", "solver.teacher_forcing=0.25"]
    ).solver
    block: Any = SimpleNamespace(index=1)
    fresh = [PrunedBlock(block, ridges={("a", "b"): 0.1, ("c",): None})]
    features = FeatureStatistics(1.0, 0.25, torch.ones(2))
    return window_record(windows(3, 2, 1)[1], fit, after, solver, features, fresh, ["of pruning"], 1.23456)


def test_a_windows_errors_are_those_before_and_after_in_the_measure_of_its_loss() -> None:
    for loss, calibration, heldout in (
        ("squared", (2.0, 12.0), (5.0, 15.0)),
        ("standardized", (3.0, 13.0), (6.0, 16.0)),
    ):
        found = _window(2, loss=loss)
        assert found["loss"] == loss
        for key, (before, after) in {
            "calibration_error": (1.0, 11.0),
            "heldout_error": (4.0, 14.0),
            "relative_calibration_error": calibration,
            "relative_heldout_error": heldout,
            "standardized_heldout_error": (6.0, 16.0),
        }.items():
            assert found[key] == {"before": before, "after": after}
        assert found["guard"]["relative_heldout_error"] == {"last": 0.4, "kept": 0.3}
        assert found["guard"]["standardized_heldout_error"] == {"last": 4.0, "kept": 3.0}
        start = _window(0, loss=loss)["guard"]
        assert start["relative_heldout_error"]["kept"] == heldout[0]
        assert start["standardized_heldout_error"]["kept"] == 6.0
    assert (found["index"], found["blocks"], found["teacher_forcing"]) == (1, [0, 1], 0.25)
    assert found["largest_feature"] == 0.25
    assert found["relative_lr"] == 0.3
    assert found["notes"] == ["of pruning"]
    assert found["least_squares"] == [
        {"block": 1, "linears": ["a", "b"], "ridge": 0.1},
        {"block": 1, "linears": ["c"], "ridge": None},
    ]
    assert found["seconds"] == 1.235


def test_an_epoch_names_the_blocks_that_it_moved_and_both_its_errors() -> None:
    found = _window(3, alone=1)["epochs"]
    assert [epoch["epoch"] for epoch in found] == [1, 2, 3]
    assert [epoch["blocks"] for epoch in found] == [[1], [0, 1], [0, 1]]
    assert [epoch["relative_calibration_error"] for epoch in found] == [0.1, 0.2, 0.3]
    assert [epoch["relative_heldout_error"] for epoch in found] == [0.5, 0.3, 0.4]
    assert [epoch["standardized_heldout_error"] for epoch in found] == [5.0, 3.0, 4.0]
    assert {(epoch["lr"], epoch["relative_lr"], epoch["steps"]) for epoch in found} == {(0.02, 0.2, 5)}


@pytest.mark.parametrize(
    ("kept", "alone", "blocks"), [(0, 0, []), (1, 0, [0, 1]), (1, 2, [1]), (2, 2, [1]), (3, 2, [0, 1]), (3, 3, [1])]
)
def test_reconstructed_are_the_blocks_that_were_moved_up_to_the_epoch_kept(
    kept: int, alone: int, blocks: list[int]
) -> None:
    assert _window(kept, alone=alone)["reconstructed"] == blocks


def test_what_the_guard_did_is_on_record() -> None:
    for kept, planned, stopped, restored in ((3, 3, False, False), (2, 3, False, True), (3, 9, True, False)):
        found = _window(kept, planned=planned)["guard"]
        assert (found["planned_epochs"], found["run_epochs"]) == (planned, 3)
        assert (found["stopped_early"], found["restored"], found["failures"]) == (stopped, restored, [])
    assert [_window(3, guarded=on)["guard"]["on"] for on in (True, False)] == [True, False]


def test_a_fit_that_failed_in_its_first_epoch_is_on_record() -> None:
    errors = Errors(Error(1.0, 2.0, 3.0), Error(4.0, 5.0, 6.0))
    fit = Fit(errors, (), 4, 0, True, 0.3, (Failure("the loss became nan", 1, "--lr", 10.0),))
    solver = resolve_recipe("model", {"reconstruct": "BR"}).solver
    guard = window_record(windows(3, 2, 1)[1], fit, errors, solver, None, [], [], 0.0)["guard"]
    assert guard["failures"] == ["the loss became nan in epoch 1; lower --lr (the learning rate, now 10)"]
    assert (guard["planned_epochs"], guard["run_epochs"], guard["restored"]) == (4, 0, False)
    assert guard["standardized_heldout_error"] == {"last": 6.0, "kept": 6.0}


def test_a_window_that_nothing_was_fitted_in_has_the_errors_after_it_alone() -> None:
    """It has no fresh blocks and no statistics of its targets."""
    errors = Errors(Error(1.0, 2.0), Error(4.0, 5.0))
    solver = resolve_recipe("model", {"reconstruct": "LR"}).solver
    found = window_record(windows(3, 2, 1)[1], Fit(None, (), 0, 0, True), errors, solver, None, [], [], 0.0)
    assert found["calibration_error"] == {"before": 1.0, "after": 1.0}
    assert found["standardized_heldout_error"] == {"before": None, "after": None}
    assert found["largest_feature"] is found["guard"] is None
    assert found["epochs"] == found["reconstructed"] == []


def test_what_each_process_sent_is_what_it_has_sent_since() -> None:
    before = Traffic(100, 2.0)
    told: list[Any] = []

    def each_tells(value: Any) -> list[Any]:
        told.append(value)
        return [value, [7, 0.5]]

    several: Any = SimpleNamespace(alone=False, traffic=Traffic(130, 3.23456), each_tells=each_tells)
    assert exchange_record(several, before) == {"exchange": {"bytes": [30, 7], "seconds": [1.235, 0.5]}}
    assert told == [[30, 1.235]]
    assert exchange_record(ALONE, before) == {}


def _matrix(rows: int, columns: int, zeros: int) -> dict[str, Any]:
    return {"name": "a", "rows": rows, "columns": columns, "zeros": zeros}


def _linear(name: str, rows: int, columns: int, zeros: int) -> Linear:
    module = torch.nn.Linear(columns, rows)
    with torch.no_grad():
        module.weight.fill_(1.0).view(-1)[:zeros] = 0.0
    return Linear.of(name, module)


def test_a_block_has_the_share_of_zeros_of_all_its_matrices_and_the_papers_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = Errors(Error(1.0, 2.0, 3.0), Error(4.0, 5.0, 6.0))
    sparsities = Sparsities(Unstructured(0.75), {"a": Unstructured(0.25)})
    block: Any = SimpleNamespace(index=3, linears=[_linear("a", 2, 6, 3), _linear("b", 4, 3, 9), _linear("c", 2, 2, 4)])
    a, b = _matrix(2, 6, 3) | {"sparsity": 0.25, "pattern": "0.25"}, _matrix(4, 3, 9) | {"name": "b", "sparsity": 0.75}
    for matrices, sparsity in (([a, b | {"tokens": 5}], 0.5), ([], 0.0)):
        masks: Any = dict.fromkeys(matrix["name"] for matrix in matrices)
        pruned = PrunedBlock(block, masks=masks, tokens={"b": 5})
        monkeypatch.setattr(PrunedBlock, "idle", lambda *_: ["never run"])
        assert block_record(pruned, errors, sparsities, Choice()) == {
            "index": 3,
            "sparsity": sparsity,
            "calibration_error": 1.0,
            "heldout_error": 4.0,
            "relative_calibration_error": 2.0,
            "relative_heldout_error": 5.0,
            "matrices": matrices,
            "idle": ["never run"],
        }


_COMMIT = 40 * "a"


def _full(
    model: str,
    peaks: list[dict[str, int]],
    distilled: bool = False,
    machines: Sequence[Any] = (),
    of_windows: Sequence[list[dict[str, int]]] = (),
    **own: Any,
) -> dict[str, Any]:
    """The record of a run of two blocks, of which the last may have been distilled.

    `machines` and `of_windows` are the machines and the peaks of its steps.
    """
    recipe = resolve_recipe(model, {"calibration": ["texts.txt=4"]}, settings=["device=cpu"])
    job = {"folder": f"/cache/models--a--b/snapshots/{_COMMIT}", **dict.fromkeys(("fingerprint", "weights"), "f")}
    job |= {"versions": {}, "data": {}, "sketch": {}, **own}
    blocks = [{"index": index, "matrices": [_matrix(2, 2, 2 - index)]} for index in range(2)]
    lines: list[dict[str, Any]] = [
        {"window": {"index": index}, "blocks": [blocks[index]], "forward": index} for index in range(2)
    ]
    if distilled:
        again = {"index": 1, "matrices": [_matrix(2, 2, 2)]}
        lines.append({"window": {"index": 2, "distilled": [1]}, "blocks": [again], "forward": 2})
    for line, one in zip(lines, machines or [machine("cpu")] * 3, strict=False):
        line["machine"] = one
    for line, highest in zip(lines, of_windows, strict=False):
        line["peaks"] = highest
    return full_record(recipe, job, lines, 1.23456, peaks)


def test_of_blocks_that_were_fitted_once_more_what_they_are_last_is_on_record() -> None:
    peaks = [{"host": 5, "device": 1}]
    found, again = _full("model", peaks), _full("model", peaks, distilled=True)
    assert [block["index"] for block in again["blocks"]] == [0, 1]
    assert (found["sparsity"], again["sparsity"]) == (3 / 8, 4 / 8)
    assert (found["forward"], again["forward"]) == (1, 2)
    assert found["windows"] == again["windows"] == [{"index": 0}, {"index": 1}]
    assert (found["distillation"], again["distillation"]) == (None, {"index": 2, "distilled": [1]})
    assert found["seconds"] == 1.235
    assert found["peak_memory_bytes"] == peaks[0]
    assert "ranks" not in found and "peak_memory_bytes_by_rank" not in found


def test_what_another_machine_has_done_before_a_run_was_resumed_names_it() -> None:
    here, there = machine("cpu"), machine("cpu") | {"threads": 99}
    peaks = [{"host": 5, "device": 1}]
    assert "machine" not in _full("model", peaks)["windows"][0]
    found = _full("model", peaks, distilled=True, machines=[there, here, there])
    assert found["machine"] == here
    assert [window.get("machine") for window in found["windows"]] == [there, None]
    assert found["distillation"]["machine"] == there


def test_it_names_no_folders_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("a")
    (tmp_path / "model").mkdir()
    found = _full(str(tmp_path / "model"), [{"host": 5, "device": 1}])
    assert found["model"]["name"] == found["recipe"]["model"] == "model"
    assert "commit" not in found["model"], "of a local model"
    assert _full("a/b", [{"host": 5, "device": 1}])["model"]["commit"] == _COMMIT
    (tmp_path / "c4").mkdir()
    recipe = resolve_recipe("model", {"calibration": [f"{tmp_path}/texts.txt=4", "./c4", "c4"]})
    named = record._without_folders(recipe, tmp_path)["calibration"]
    assert named == ["./texts.txt=4", "./c4", "c4"], "the last is the Hub's"


@pytest.mark.parametrize(
    ("before", "most"),
    [
        ([(10, 0), (1, 9)], [(10, 1), (7, 9)]),
        ([(10, 0)], [(10, 1), (7, 2)]),  # fewer processes wrote the texts
        ([(6, 0), (8, 0), (99, 9)], [(9, 1), (8, 2)]),
    ],
)
def test_a_peak_of_each_process_is_the_highest_of_its_texts_and_its_run(
    before: list[tuple[int, int]], most: list[tuple[int, int]]
) -> None:
    def named(pairs: list[tuple[int, int]]) -> list[dict[str, int]]:
        return [{"host": host, "device": device} for host, device in pairs]

    own = {"seconds": 3, "peak_memory_bytes": named(before)}
    found = _full("model", named([(9, 1), (7, 2)]), self_generation=own)
    assert found["peak_memory_bytes_by_rank"] == named(most)
    assert found["peak_memory_bytes"] == named(most)[0]
    assert found["ranks"] == 2
    assert found["self_generation"] == {"seconds": 3, "peak_memory_bytes": named(before)[0]}


def test_the_peaks_of_what_was_done_before_a_run_was_resumed_count() -> None:
    before = [[{"host": 9, "device": 0}], [{"host": 4, "device": 3}]]
    found = _full("model", [{"host": 5, "device": 1}], of_windows=before)
    assert found["peak_memory_bytes"] == {"host": 9, "device": 3}


def test_the_versions_of_all_that_decides_bits_are_on_record() -> None:
    found = versions()
    assert found.keys() == {"reprune", "python", "torch", "transformers", "safetensors", "tokenizers"}
    assert (found["tokenizers"], found["torch"]) == (version("tokenizers"), str(torch.__version__))
