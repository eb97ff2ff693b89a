"""The objects that a recipe builds: pruners, solvers, distillation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reprune.math.adam import Adam
from reprune.math.least_squares import LeastSquares
from reprune.math.magnitude import Magnitude
from reprune.math.solver import NoSolver
from reprune.math.sparsegpt import SparseGPT
from reprune.math.wanda import Wanda
from reprune.math.weight_update import WeightUpdate
from reprune.math.widening import Widening
from reprune.planning.descents import SolverRecipe
from reprune.planning.layers import resolve_recipe


def test_a_recipe_builds_what_it_names() -> None:
    assert isinstance(resolve_recipe("model", {"pruner": "magnitude"}).pruner.build(), Magnitude)
    assert isinstance(resolve_recipe("model", {"pruner": "wanda"}).pruner.build(), Wanda)
    chosen = resolve_recipe("model", settings=["pruner.damping=0.1", "pruner.block_size=32"])
    assert chosen.pruner.build() == SparseGPT(damping=0.1, block_size=32)
    solver = {"epochs": 3, "lr": 0.1, "batch_size": 2, "betas": [0.5, 0.6]}
    adam = resolve_recipe("model", {"solver": solver}).solver.build(guard=False)
    assert adam == Adam(epochs=3, lr=0.1, batch_size=2, betas=(0.5, 0.6), guard=False)
    small = resolve_recipe("model", {"solver": solver | {"micro_batch_size": 1, "rank": 4}}).solver
    assert small.build(guard=False) == replace(adam, micro_batch_size=1, rank=4)
    compact = resolve_recipe("model", {"solver": solver | {"compact": True}}).solver
    assert compact.build(guard=False) == replace(adam, compact=True)
    assert (small.samples_at_a_time, SolverRecipe(batch_size=3).samples_at_a_time) == (1, 3)
    assert isinstance(resolve_recipe("model", {"reconstruct": "LR"}).solver.build(guard=True), NoSolver)
    assert resolve_recipe("model").solver.build_least_squares() is None
    start = resolve_recipe("model", {"solver": {"start": "least-squares", "ridge": 0.3}}).solver
    assert start.build_least_squares() == LeastSquares(0.3)
    patient = resolve_recipe("model", {"solver": {"epochs": 9, "patience": 4}}).solver.build(guard=True)
    assert patient == Adam(epochs=9, patience=4)
    for epochs, part, whole in ((9, 3, 6), (10, 4, 6), (3, 1, 2), (1, 1, 1)):
        auto = resolve_recipe("model", {"reconstruct": "auto", "solver": {"epochs": epochs}}).solver.build(guard=True)
        middle = whole / (part + whole)
        own = Adam(epochs, 0.01, try_first_step=True, relative=True)
        assert auto == Widening(
            replace(own, epochs=part, decay=(1.0, middle)), replace(own, epochs=whole, decay=(middle, 0.0)), own
        ), "one rate that falls over both"
    recipe = resolve_recipe("model", {"distill": {"blocks": 2, "epochs": 5}, "solver": {"batch_size": 2}})
    distillation = recipe.distill.build(recipe.solver, guard=True)
    assert distillation == Adam(
        5, 0.002, batch_size=2, try_first_step=True, relative=True, warmup=1 / 8, lr_name="distill.lr"
    )


@pytest.mark.parametrize(
    ("precision", "products"),
    [("auto", torch.bfloat16), ("bfloat16", torch.bfloat16), ("float16", torch.float32), ("float32", torch.float32)],
)
def test_a_weight_update_is_built_around_the_named_pruner(precision: str, products: torch.dtype) -> None:
    """Its products are in the recipe's precision, but for float16, which sums of squares soon exceed."""
    update = ["pruner.update=least-squares", "pruner.ridge=2"]
    for name, masks in (("magnitude", Magnitude), ("wanda", Wanda), ("sparsegpt", SparseGPT)):
        made = resolve_recipe("model", {"pruner": name, "precision": precision}, settings=update).build_pruner()
        assert isinstance(made, WeightUpdate)
        assert (type(made.masks), made.ridge, made.products) == (masks, 2.0, products)
