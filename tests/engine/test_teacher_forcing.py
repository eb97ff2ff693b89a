"""Windows may be fitted on states that are partly the dense model's (`solver.teacher_forcing`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reprune.engine.frontier import Frontier
from reprune.errors import InputError
from tests.engine.quick import prune, tensors


def block(folder: Path, index: int) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors(folder).items() if f"layers.{index}." in name}


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_the_dense_models_states_alone_a_block_does_not_see_what_was_pruned_before_it(
    llama: Path, precision: str, tmp_path: Path
) -> None:
    # With magnitude pruning, masks do not depend on states either.
    plain = ["guard=off", "pruner=magnitude", f"precision={precision}"]
    prune(llama, tmp_path / "own", *plain)
    prune(llama, tmp_path / "forced", *plain, "solver.teacher_forcing=1")
    prune(llama, tmp_path / "lone", *plain, "include=[2.*]")  # all blocks before it stay dense
    assert alike(block(tmp_path / "forced", 0), block(tmp_path / "own", 0))  # no block is before it
    assert alike(block(tmp_path / "forced", 2), block(tmp_path / "lone", 2))
    assert not alike(block(tmp_path / "own", 2), block(tmp_path / "lone", 2))


@pytest.mark.parametrize(("rung", "share"), [("BR+GP", 0.25), ("BR+GP+CR", 0.5), ("auto", 1.0)])
def test_what_enters_is_that_share_of_the_dense_states_and_the_rest_of_the_students(
    llama: Path, rung: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the last block of a window by itself, which `auto` fits first."""
    run, apart = Frontier.run, []

    def watched(self: Frontier, blocks: Any, states: Tensor, samples: Any, *rest: Any) -> Tensor:
        if torch.is_grad_enabled():
            dense, student = self.entering(blocks[0], samples), self.student.read(samples)
            torch.testing.assert_close(states, share * dense + (1 - share) * student)
            apart.append(not torch.equal(dense, student))
        return run(self, blocks, states, samples, *rest)

    monkeypatch.setattr(Frontier, "run", watched)
    prune(llama, tmp_path / "out", f"solver.teacher_forcing={share}", reconstruct=rung)
    assert any(apart)
    assert not all(apart)  # the first block's states are the same


@pytest.mark.parametrize("rung", ["BR+GP", "auto"])
def test_it_is_on_record_and_errors_are_of_the_students_states(llama: Path, rung: str, tmp_path: Path) -> None:
    record = prune(llama, tmp_path / "out", "solver.teacher_forcing=0.5", reconstruct=rung)
    assert [window["teacher_forcing"] for window in record["windows"]] == [0.5] * len(record["windows"])
    assert record["recipe"]["solver"]["teacher_forcing"] == 0.5
    for window in record["windows"]:
        kept = [epoch for epoch in window["epochs"] if epoch["epoch"] == window["kept_epoch"]]
        for epoch in kept:  # the kept state, measured again when the student's stream advances
            after = window["standardized_heldout_error"]["after"]
            assert epoch["standardized_heldout_error"] == pytest.approx(after, rel=1e-4)


def test_a_local_teacher_has_no_such_states(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"solver\.teacher_forcing needs .* teacher: global"):
        prune(llama, tmp_path / "out", "solver.teacher_forcing=0.5", reconstruct="BR")
    assert not (tmp_path / "out").exists()
