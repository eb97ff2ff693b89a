"""A pruner of another package, held to what a `Pruner` promises: a wrong mask would be a wrong model, silently."""

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
    """Another pruner, whose matrices are looked at before anybody takes them."""

    def __init__(self, name: str, pruner: Pruner[Any], settings: str = "") -> None:
        """`name` is what it is called in messages, `settings` what the package has made it with, in words."""
        self.name = name
        self.pruner = pruner
        self.settings = settings
        self.data_free = pruner.data_free

    def statistics(self, columns: int, device: torch.device) -> Statistics:
        made: Statistics = self.pruner.statistics(columns, device)
        return made

    def _prune(self, weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern) -> list[Pruned]:
        # Tensors that were made in inference mode do not count their changes.
        gathered = [(one, one._version) for one in statistics._sums_of() if not one.is_inference()]
        with _seeded(weights), naming(f"pruner {self.name}"):
            made: Any = self.pruner.prune([weight.clone() for weight in weights], statistics, pattern)
            found = list(made) if isinstance(made, Iterable) else [made]  # which may be made only now
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
    """Random numbers that the run's seed and these matrices decide: the same in a run that was interrupted before."""
    device, row = weights[0].device, weights[0][0].tolist()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(torch.initial_seed(), *(tuple(weight.shape) for weight in weights), row))
        yield


def _wrong(weight: Tensor, pruned: Pruned, pattern: Pattern) -> str | None:
    """What is not as promised of a pruned matrix; None where all is."""
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
