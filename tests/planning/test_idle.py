"""A setting that is given and that nothing reads is named, with the reason; one that is read is not."""

from __future__ import annotations

from typing import Any

import pytest

from reprune.planning.idle import idle_notes
from reprune.planning.layers import parse_setting, resolve_recipe
from reprune.planning.recipe import Recipe


def notes(flags: dict[str, Any], *settings: str, file: dict[str, Any] | None = None) -> list[str]:
    recipe = resolve_recipe("model", file or {}, flags, settings)
    return idle_notes([recipe], flags, map(parse_setting, settings))


@pytest.mark.parametrize(
    ("flags", "settings", "expected"),
    [
        ({"reconstruct": "LR", "solver": {"epochs": 3, "lr": 1e-3}}, [], "--epochs, --lr have no effect: nothing is t"),
        ({"reconstruct": "LR"}, ["solver.rank=4"], "solver.rank has no effect: nothing is trained"),
        ({"reconstruct": "LR"}, ["distill=2", "solver.lr=1%"], "solver.lr has no effect: without a solver only"),
        ({}, ["guard=off", "solver.patience=3"], "solver.patience has no effect: the guard is off"),
        ({}, ["solver.ridge=0.1"], "solver.ridge has no effect: it is of solver.start least-squares"),
        ({}, ["distill.epochs=2"], "distill.epochs has no effect: distill.blocks is 0"),
        ({}, ["distill={blocks: 0, lr: 1%}"], "distill.lr has no effect: distill.blocks is 0"),
        ({"pruner": {"name": "wanda"}}, ["pruner.damping=0.1"], "pruner.damping has no effect: the pruner is wanda"),
        ({}, ["pruner.ridge=0.5"], "pruner.ridge has no effect: it is of pruner.update least-squares"),
        ({}, ["allocation.spread=0.1"], "allocation.spread has no effect: allocation.name is uniform"),
        ({}, ["allocation=by-error", "allocation.outlier=3"], "allocation.outlier has no effect: it is of owl"),
        ({}, ["self_generate.length=64"], "self_generate.length has no effect: the model writes no text"),
    ],
)
def test_a_setting_that_nothing_reads_is_named(flags: dict[str, Any], settings: list[str], expected: str) -> None:
    (note,) = notes(flags, *settings)
    assert note.startswith(expected)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ({"reconstruct": "LR"}, ["distill=2", "solver.epochs=4", "solver.rank=2", "distill.lr=1%"]),
        ({"reconstruct": "LR", "solver": {"batch_size": 4}}, []),  # the size of the batches that pass through a block
        ({"solver": {"epochs": 3, "lr": "1%"}}, ["solver.patience=3", "pruner.damping=0.1"]),
        ({}, ["solver.start=least-squares", "solver.ridge=0.1"]),
        ({}, ["pruner.update=least-squares", "pruner.ridge=0.1"]),
        ({}, ["allocation=owl", "allocation.spread=0.1", "allocation.outlier=3"]),
        ({"self_generate": 4}, ["self_generate.filters=[]"]),
        ({"reconstruct": "auto"}, ["solver.epochs=2"]),
    ],
)
def test_a_setting_that_is_read_is_not(flags: dict[str, Any], settings: list[str]) -> None:
    assert notes(flags, *settings) == []


def test_a_recipe_file_may_hold_all_settings() -> None:
    assert notes({"reconstruct": "LR"}, file=Recipe(model="model").model_dump(mode="json")) == []


def test_of_several_runs_a_setting_is_named_only_if_none_reads_it() -> None:
    runs = [
        resolve_recipe("model", {}, {"pruner": {"name": name}, "reconstruct": "LR"}, [])
        for name in ("magnitude", "wanda", "sparsegpt")
    ]
    flags, settings = {"solver": {"epochs": 3}}, [{"pruner": {"damping": 0.1}}]
    trained = "--epochs has no effect: nothing is trained (solver.name is none)"
    assert idle_notes(runs, flags, settings) == [trained]
    assert idle_notes(runs[:2], flags, settings) == [
        trained,
        "pruner.damping has no effect: the pruner is magnitude, not sparsegpt; the pruner is wanda, not sparsegpt",
    ]
