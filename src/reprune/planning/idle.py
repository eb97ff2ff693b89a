"""Settings that somebody gave for a run though nothing in it reads them. Knows recipes, not how they are merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from reprune.planning.axes import PRUNERS
from reprune.planning.recipe import Recipe

_FLAGS = {"solver.epochs": "--epochs", "solver.lr": "--lr"}
"""By key, the flag that sets it, if the flag has another name."""
_OF_WINDOWS = ("lr", "loss", "routing", "teacher_forcing")  # settings of the solver that distillation does not share
_OF_DESCENTS = (
    *("epochs", "checkpointing", "rank", "compact", "betas", "patience"),  # but samples always pass in batches
    *_OF_WINDOWS,
)


def idle_notes(recipes: Iterable[Recipe], flags: Mapping[str, Any], settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """A note for each reason for which settings have no effect in any of some runs.

    Args:
        recipes: of the runs, one or several that were given the same.
        flags: the flags that were given, nested as in a recipe.
        settings: the same for each `--set`. Settings of recipe files are not looked at: a run's own recipe has all.
    """
    given = [(key, _FLAGS.get(key, key)) for key in _keys(flags)]
    given += [(key, key) for setting in settings for key in _keys(setting)]
    reasons = [{key: reason for keys, reason in _idle(recipe) for key in keys} for recipe in recipes]
    names: dict[str, list[str]] = {}  # by what a note says of them
    for key, name in dict.fromkeys(given):
        if all(key in of_run for of_run in reasons):
            reason = "; ".join(dict.fromkeys(of_run[key] for of_run in reasons))
            names.setdefault(reason, []).append(name)
    return [
        f"{', '.join(found)} {'has' if len(found) == 1 else 'have'} no effect: {reason}"
        for reason, found in names.items()
    ]


def _keys(layer: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of the values in nested mappings."""
    for key, value in layer.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _idle(recipe: Recipe) -> Iterator[tuple[Sequence[str], str]]:
    """The keys that a run does not read, and why."""
    solver, distills = recipe.solver, recipe.distill.blocks > 0
    if solver.name == "none" and not distills:
        yield _under("solver", _OF_DESCENTS), "nothing is trained (solver.name is none)"
    elif solver.name == "none":
        yield _under("solver", _OF_WINDOWS), "without a solver only distillation trains, and it does not read this"
    elif not recipe.guard:
        yield ["solver.patience"], "the guard is off"
    if solver.start != "least-squares":
        yield ["solver.ridge"], "it is of solver.start least-squares"
    if not distills:
        yield _under("distill", ("epochs", "lr")), "distill.blocks is 0"
    if recipe.pruner.name != "sparsegpt":
        yield _under("pruner", ("damping", "block_size")), f"the pruner is {recipe.pruner.name}, not sparsegpt"
    if recipe.pruner.name not in PRUNERS:
        yield _under("pruner", ("update", "ridge")), f"the pruner is {recipe.pruner.name}, of another package"
    elif recipe.pruner.update == "pruner":
        yield ["pruner.ridge"], "it is of pruner.update least-squares"
    if recipe.allocation.name == "uniform":
        yield _under("allocation", ("spread", "outlier")), "allocation.name is uniform"
    elif recipe.allocation.name != "owl":
        yield ["allocation.outlier"], f"it is of owl, and allocation.name is {recipe.allocation.name}"
    if not recipe.self_generate.samples:
        own = [name for name in type(recipe.self_generate).model_fields if name != "samples"]
        yield _under("self_generate", own), "the model writes no text (--self-generate is not given)"


def _under(part: str, names: Iterable[str]) -> list[str]:
    return [f"{part}.{name}" for name in names]
