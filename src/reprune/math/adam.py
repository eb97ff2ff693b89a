"""Reconstruction by Adam: gradient steps on a window's parameters, masks fixed (PAPER: "Setting").

The paper moves all weights. The kept weights alone, or low-rank updates, can be moved instead (see
`reprune.math.coordinates`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from reprune.errors import NumericalError
from reprune.math.coordinates import AllWeights, Coordinates, KeptWeights, LowRank
from reprune.math.first_step import retreat_, shorten_
from reprune.math.guard import Guard
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Epoch, Failure, Fit, Objective, Problem, Solver, finite_errors


@dataclass(frozen=True)
class Descent:
    """The outcome of a descent."""

    epochs: tuple[Epoch, ...]
    kept_epoch: int  # the epoch whose state the parameters are left in; 0: the state before the first step
    heldout: Error  # of that state
    relative_lr: float  # the rate asked for, divided by the root mean square of the kept weights before the first step
    failures: tuple[Failure, ...] = ()  # the one that ended it, if any; only with the guard


@final
@dataclass(frozen=True)
class Adam(Solver):
    """Adam on the problem's loss, with a learning rate that falls linearly; no weight decay, no clipping."""

    epochs: int = 10
    lr: float = 2e-4
    batch_size: int = 8
    micro_batch_size: int | None = None
    """How many of a step's samples pass through the window at a time; gradients are summed. None: all of them."""
    betas: tuple[float, float] = (0.9, 0.95)
    guard: bool = True
    """Keep the state with the lowest held-out error among the start and the end of each epoch."""
    patience: int = 2
    """With the guard: stop after this many epochs in a row without a new lowest held-out error."""
    rank: int | None = None
    """Move low-rank updates of the matrices, of this rank, instead of all their weights."""
    compact: bool = False
    """Hold gradients, moments and the guard's copy for kept weights only: the same steps with less memory."""
    decay: tuple[float, float] = (1.0, 0.0)
    """The shares of `lr` that the learning rate falls from and to."""
    warmup: float = 0.0
    """The share of the steps, rounded up to whole steps, in which the rate first rises linearly to its full value."""
    try_first_step: bool = False
    """Halve the learning rate until the first step keeps the held-out error in bounds (see `first_step`)."""
    relative: bool = False
    """Whether `lr` is a share of the root mean square of the window's kept weights."""
    lr_name: str = "--lr"
    """The name, in messages, of the setting that `lr` comes from."""

    def planned(self, blocks: int) -> int:
        return self.epochs

    def batch_sizes(self, samples: int) -> set[int]:
        steps = {min(self.batch_size, samples), samples % self.batch_size} - {0}
        if (micro := self.micro_batch_size) is None:
            return steps
        return {size for step in steps for size in (min(micro, step), step % micro)} - {0}

    def fit(self, problem: Problem, seed: int, progress: Callable[[Epoch], None]) -> Fit:
        before = finite_errors(problem)
        if not before.calibration.normalized:  # nor is there a gradient
            return Fit(before)
        descent = self.descend(problem, before.heldout, seed, progress)
        return Fit(
            before,
            descent.epochs,
            self.epochs,
            descent.kept_epoch,
            self.guard,
            descent.relative_lr,
            descent.failures,
        )

    def descend(self, problem: Objective, start: Error, seed: int, progress: Callable[[Epoch], None]) -> Descent:
        """Take the steps of all epochs.

        Args:
            problem: the objective to minimize.
            start: its held-out error before the first step.
            seed: determines the order of the samples.
            progress: called after each epoch.

        Raises:
            NumericalError: an error is not finite, and there is no guard that has kept an earlier state.
        """
        with self._coordinates(problem, seed) as coordinates:
            return self._descend(problem, coordinates, start, seed, progress)

    def _coordinates(self, problem: Objective, seed: int) -> Coordinates:
        if self.rank is not None:
            return LowRank(problem, self.rank, seed)
        return KeptWeights(problem) if self.compact else AllWeights(problem)

    def _descend(
        self,
        problem: Objective,
        coordinates: Coordinates,
        start: Error,
        seed: int,
        progress: Callable[[Epoch], None],
    ) -> Descent:
        parameters = list(coordinates.leaves)
        device = parameters[0].device
        size = kept_rms(problem) or 1.0
        lr, relative_lr = (self.lr * size, self.lr) if self.relative else (self.lr, self.lr / size)
        optimizer = torch.optim.Adam(parameters, lr=lr, betas=self.betas, fused=device.type in ("cpu", "cuda"))
        scaler = torch.amp.GradScaler(device.type, enabled=problem.half)
        scaler.scale(torch.zeros((), device=device))  # creates the scale: a rank may have no sample in step 1
        tried = not self.try_first_step
        generator = torch.Generator().manual_seed(seed)
        standardized = problem.scale is not None
        # On a CPU, picking half of a matrix takes fifty times as long as copying all of it.
        masks = [None] * len(parameters) if device.type == "cpu" else coordinates.masks
        guard = Guard(parameters, masks, start, self.patience) if self.guard else None
        epochs: list[Epoch] = []
        heldout, failures = start, list[Failure]()
        batches_per_epoch = math.ceil(problem.samples / self.batch_size)
        steps, step = self.epochs * batches_per_epoch, 0
        for number in range(1, self.epochs + 1):
            total = torch.zeros((), dtype=torch.float64, device=device)  # read once an epoch, as that waits for a GPU
            for batch in torch.randperm(problem.samples, generator=generator).split(self.batch_size):
                warmth = self._warmth(step, steps)
                for group in optimizer.param_groups:  # the step is tried without warm-up
                    group["lr"] = lr * self._share(step, steps) * (warmth if tried else 1.0)
                optimizer.zero_grad()
                own = problem.ranks.own(batch)
                for part in own.split(self.micro_batch_size or self.batch_size) if len(own) else ():
                    with torch.enable_grad():  # `progress` may have turned gradients off
                        loss = problem.loss(part) * (len(part) / len(batch))
                        scaler.scale(loss).backward()
                    total += loss.detach().double() * len(batch)
                coordinates.pull_()
                problem.ranks.sum_gradients_(parameters)
                origin = None if tried else [parameter.detach().clone() for parameter in parameters]
                scale = None if tried else scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                coordinates.push_()
                if origin is not None and scaler.get_scale() == scale:  # else gradients overflowed: no step taken
                    tried = True
                    lr *= shorten_(parameters, origin, start, lambda: _measured(problem, coordinates))
                    retreat_(parameters, origin, warmth)
                    coordinates.push_()
                origin = None  # so that it is not held while the next step's activations are
                step += 1
            (summed,) = problem.ranks.add([float(total)])
            if not math.isfinite(summed):
                failures.append(Failure(f"the loss became {summed}", number, self.lr_name, lr))
            elif not (heldout := problem.heldout_error()).finite:
                failures.append(Failure(f"the held-out error became {heldout.normalized}", number, self.lr_name, lr))
            if failures:
                if guard is None:
                    raise NumericalError(f"{failures[0]} and begin again in another folder")
                break
            calibration, seen = summed / problem.samples, heldout.in_measure(standardized)
            highest = lr * self.decay[0]
            epochs.append(Epoch(number, calibration, seen, heldout.judged, highest, highest / size, batches_per_epoch))
            progress(epochs[-1])
            if guard is not None and guard.stops_after(number, heldout):
                break
        if guard is None:
            return Descent(tuple(epochs), len(epochs), heldout, relative_lr)
        kept = Descent(tuple(epochs), *guard.restore_(), relative_lr, tuple(failures))
        coordinates.push_()
        return kept

    def _share(self, step: int, steps: int) -> float:
        """The share of `lr` at a step, counted from 0, without the warm-up."""
        first, last = self.decay
        return first + (last - first) * step / steps

    def _warmth(self, step: int, steps: int) -> float:
        """The factor that the warm-up applies at the same step."""
        return min(1.0, (step + 1) / (math.ceil(self.warmup * steps) + 1))


def _measured(problem: Objective, coordinates: Coordinates) -> Error:
    coordinates.push_()
    return problem.heldout_error()


def kept_rms(problem: Objective) -> float:
    """The root mean square of the kept weights of all of a problem's matrices that are pruned in this run.

    If none is pruned, all its linears count instead; if there are none either, all its parameters.
    """
    pairs = list(zip(problem.parameters, problem.masks, strict=True))
    counted = [pair for pair, counts in zip(pairs, problem.sized, strict=True) if counts] or pairs
    power = sum(float(torch.linalg.vector_norm(parameter.detach())) ** 2 for parameter, _ in counted)
    kept = sum(parameter.numel() if mask is None else int(mask.sum()) for parameter, mask in counted)
    return math.sqrt(power / max(kept, 1))
