"""What a cell needs of a machine: cores, a GPU, memory; by its run's forecast and the memory that measuring takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from reprune.doors.devices import DTYPES
from reprune.doors.planned import Plan
from reprune.engine.peak_memory import resident_bytes
from reprune.planning.recipe import Recipe

_MARGIN = 1.15  # forecasts of memory were off by at most 15 %


@final
@dataclass(frozen=True)
class Needs:
    """The needs of one cell."""

    cpus: int
    gpus: int
    memory_bytes: int

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{gpus}, {self.memory_bytes / 1e9:.1f} GB of memory"


def needs(plan: Plan, recipe: Recipe, cpus: int) -> Needs:
    """What one cell needs.

    Args:
        plan: of a cell that prunes the same linears.
        recipe: this cell's.
        cpus: the cores that it is to have.
    """
    settled = recipe.model_copy(update={key: getattr(plan.recipe, key) for key in ("device", "precision", "seqlen")})
    own = replace(plan, recipe=settled)
    on_gpu = settled.device.startswith("cuda")
    # The whole model is loaded to measure it: on its way to a GPU, too, it is in the host's memory.
    measuring = resident_bytes() + plan.weights * DTYPES[settled.precision].itemsize
    return Needs(cpus, int(on_gpu), int(_MARGIN * max(own.memory_bytes, measuring)))


def all_needs(plans: Mapping[str, Plan], recipes: Mapping[str, Recipe], cpus: int) -> dict[str, Needs]:
    """What each cell needs, by its name.

    Args:
        plans: by the part that is pruned.
        recipes: by cell.
        cpus: the cores that each is to have.
    """
    found: dict[str, Needs] = {}  # by recipe, whatever its seed

    def of(recipe: Recipe) -> Needs:
        key = recipe.model_copy(update={"seed": 0}).model_dump_json()
        if key not in found:
            found[key] = needs(plans[recipe.only], recipe, cpus)
        return found[key]

    return {name: of(recipe) for name, recipe in recipes.items()}
