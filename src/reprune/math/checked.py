"""Holds a pruner of another package to what `Pruner` promises: a wrong mask would silently give a wrong model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from reprune.errors import NumericalError, naming
from reprune.math.finite import all_finite
from reprune.math.patterns import Pattern
from reprune.math.pruner import Pruned, Pruner
from reprune.math.seeds import seed_of
from reprune.math.statistics import Statistics


@final
class Checked(Pruner[Statistics]):
    """Wraps another pruner and checks each matrix that it returns."""

    def __init__(self, name: str, pruner: Pruner[Any], settings: str = "") -> None:
        """`name` is its name in messages; `settings` describes the settings that its package made it with."""
        self.name = name
        self.pruner = pruner
        self.settings = settings
        self.data_free = pruner.data_free

    def statistics(self, columns: int, device: torch.device) -> Statistics:
        made: Statistics = self.pruner.statistics(columns, device)
        return made

    def _prune(self, weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern) -> list[Pruned]:
        # Tensors made in inference mode have no version counter.
        gathered = [(one, one._version) for one in statistics._sums_of() if not one.is_inference()]
        with _seeded(weights), naming(f"pruner {self.name}"):
            made: Any = self.pruner.prune([weight.clone() for weight in weights], statistics, pattern)
            found = list(made) if isinstance(made, Iterable) else [made]  # a generator prunes only now
        if len(found) != len(weights):
            raise NumericalError(f"pruner {self.name} returned {len(found)} matrices; {len(weights)} were expected")
        if any(one._version != version for one, version in gathered):
            raise NumericalError(f"pruner {self.name} changed its statistics, which are shared; change a copy instead")
        results = []
        for number, (weight, one) in enumerate(zip(weights, found, strict=True), start=1):
            if wrong := _wrong(weight, one, pattern):
                raise NumericalError(f"pruner {self.name}, matrix {number} of this group: {wrong}")
            notes = (one.notes,) if isinstance(one.notes, str) else tuple(one.notes)
            results.append(Pruned(one.weight.contiguous(), one.mask.contiguous(), notes))
        return results


@contextmanager
def _seeded(weights: Sequence[Tensor]) -> Iterator[None]:
    """Seed random numbers by the run's seed and these matrices, so that a resumed run draws the same ones."""
    device, row = weights[0].device, weights[0][0].tolist()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(torch.initial_seed(), *(tuple(weight.shape) for weight in weights), row))
        yield


def _wrong(weight: Tensor, pruned: Pruned, pattern: Pattern) -> str | None:
    """How a pruned matrix breaks the promises, in words; None if it keeps them."""
    if not isinstance(pruned, Pruned):
        return f"expected a reprune.math.pruner.Pruned, got a {type(pruned).__name__}"
    for name, found, dtype in (("weight", pruned.weight, torch.float32), ("mask", pruned.mask, torch.bool)):
        was = found.shape, found.dtype, found.device
        if was != (weight.shape, dtype, weight.device):
            expected = f"{dtype} {tuple(weight.shape)} on {weight.device}"
            return f"expected a {name} of {expected}, got {was[1]} {tuple(was[0])} on {was[2]}"
    if not all_finite(pruned.weight):
        return "its weights hold NaN or infinite values"
    if bool((pruned.weight.bool() & ~pruned.mask).any()):
        return "its weights are not zero where its mask is False"
    if not pattern.allows(pruned.mask):
        return f"its mask keeps more weights than {pattern} allows; scores that are NaN can be the cause"
    return None
