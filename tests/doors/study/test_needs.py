"""What a cell needs of a node follows from its own recipe, and is computed once for all seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprune.doors.planned import Plan, plan_by_recipe
from reprune.doors.study import run
from reprune.doors.study.needs import all_needs, needs
from reprune.engine.watcher import Watcher
from reprune.planning.layers import resolve_recipe


def test_a_cell_with_more_samples_needs_more_whatever_the_plan_it_shares(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = resolve_recipe("llama", {"calibration": ["text.txt"], "samples": 6, "seqlen": 24, "device": "cpu"})
    many = few.model_copy(update={"samples": 20_000})
    asked: list[int] = []
    real = Plan.memory_bytes.fget  # type: ignore[attr-defined]  # a property's
    monkeypatch.setattr(Plan, "memory_bytes", property(lambda plan: asked.append(plan.samples[0]) or real(plan)))
    recipes = {"a": few, "b": few.model_copy(update={"seed": 1}), "c": many}
    found = all_needs({"all": plan_by_recipe(few, Watcher())}, recipes, 2)
    assert asked == [6, 20_000]
    assert found["a"] == found["b"]
    assert (found["a"].cpus, found["a"].gpus) == (2, 0)
    assert found["c"].memory_bytes > found["a"].memory_bytes + 100e6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cell_has_room_for_the_whole_model_that_it_measures_whatever_the_device(
    device: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "memory_bytes", property(lambda plan: 0))
    monkeypatch.setattr(Plan, "weights", 10**9)
    recipe = resolve_recipe("llama", {"calibration": ["text.txt"], "samples": 6, "seqlen": 24, "device": "cpu"})
    plan = plan_by_recipe(recipe, Watcher())
    settled = plan.recipe.model_copy(update={"device": device, "precision": "bfloat16"})
    found = needs(replace(plan, recipe=settled), recipe, 2)
    assert found.gpus == (device == "cuda")
    assert found.memory_bytes > 1.15 * (2e9 + 50e6), "and for what a process holds without a model"


def test_a_cell_is_forecast_by_its_own_rung_at_the_length_that_was_settled(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Plan] = []
    monkeypatch.setattr(Plan, "memory_bytes", property(lambda plan: asked.append(plan) or 50 * 10**9))
    given = {"calibration": ["text.txt"], "samples": 6, "device": "cpu"}
    low, high = (resolve_recipe("llama", {**given, "reconstruct": rung}) for rung in ("LR", "BR+GP+CR"))
    plan = plan_by_recipe(low, Watcher())
    found = needs(plan, high, 2)
    assert high.seqlen is None
    assert [one.recipe.seqlen for one in asked] == [plan.recipe.seqlen]
    assert [len(window.blocks) for window in asked[0].schedule] == [1, *[2] * (len(plan.decoder) - 1), 1]
    assert found.memory_bytes == pytest.approx(1.15 * 50e9), "the larger of what the run and its measures hold"


@pytest.mark.parametrize(
    ("device", "threads", "asked", "cpus"),
    [("cpu", 16, None, 16), ("cuda", 16, None, 4), ("cuda:0", 2, None, 2), ("cuda", 2, 9, 9)],
)
def test_a_cell_has_the_cores_that_pytorch_uses_here_but_few_beside_a_gpu_unless_it_is_said(
    device: str, threads: int, asked: int | None, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr(run, "all_needs", lambda plans, recipes, cpus: {"a": cpus})
    plans = {"all": SimpleNamespace(recipe=SimpleNamespace(device=device))}
    begun: Any = SimpleNamespace(plans=plans, recipes={}, record={"cells": []})
    assert run._needs(begun, asked) == {"a": cpus}
