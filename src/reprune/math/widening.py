"""Reconstruction that widens: first the window's last part alone, then all, each as far as held-out errors allow.

Under the overlapping schedule, a window's first block has been fitted before and its last block is fresh. Training the
fresh block alone costs half as much as training both, as the first need not be run again. So some of the epochs go to
it, and the others, from the best state found, to both. The guard keeps the state of the lowest held-out error of all,
whether no block has changed, one has, or both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

from reprune.math.adam import Adam
from reprune.math.solver import Epoch, Fit, Problem, Solver, finite_errors


@final
@dataclass(frozen=True)
class Widening(Solver):
    """Adam on the window's last part, then Adam on all of it."""

    last_part: Adam
    whole: Adam
    only_part: Adam
    """For a window of one part."""

    def planned(self, blocks: int) -> int:
        return self.only_part.epochs if blocks == 1 else self.last_part.epochs + self.whole.epochs

    def batch_sizes(self, samples: int) -> set[int]:
        return set().union(*(part.batch_sizes(samples) for part in (self.last_part, self.whole, self.only_part)))

    def fit(self, problem: Problem, seed: int, progress: Callable[[Epoch], None]) -> Fit:
        with problem.last_part() as part:
            if part is None:
                return self.only_part.fit(problem, seed, progress)
            before = finite_errors(part)  # the same as the whole window's
            if not before.calibration.normalized:
                return Fit(before)
            first = self.last_part.descend(part, before.heldout, seed, lambda epoch: progress(_of_last_part(epoch)))

        def later(epoch: Epoch) -> Epoch:
            return replace(epoch, number=epoch.number + len(first.epochs))

        second = self.whole.descend(problem, first.heldout, seed, lambda epoch: progress(later(epoch)))
        return Fit(
            before,
            (*map(_of_last_part, first.epochs), *map(later, second.epochs)),
            self.last_part.epochs + self.whole.epochs,
            second.kept_epoch + len(first.epochs) if second.kept_epoch else first.kept_epoch,
            self.whole.guard,
            first.relative_lr,
            (*first.failures, *(replace(one, epoch=one.epoch + len(first.epochs)) for one in second.failures)),
        )


def _of_last_part(epoch: Epoch) -> Epoch:
    return replace(epoch, last_part=True)
