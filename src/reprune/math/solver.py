"""What a solver is: something that fits a window's weights to its targets under fixed masks.

A solver sees a window as a `Problem`: parameters, and a differentiable map from sample numbers to outputs. A descent
needs only part of that, an `Objective`.
A new solver is one file with a class derived from `Solver`, and its name and settings in `reprune.planning.descents`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from reprune.errors import NumericalError, naming
from reprune.math.mean_square import mean_square_
from reprune.math.ranks import ALONE, Ranks
from reprune.math.reconstruction_error import Error


@dataclass(frozen=True)
class Errors:
    """Errors on the samples that are fitted and on those held out."""

    calibration: Error
    heldout: Error

    @property
    def finite(self) -> bool:
        return self.calibration.finite and self.heldout.finite


@dataclass(frozen=True)
class Epoch:
    """The outcome of one pass over the calibration samples."""

    number: int  # 1 for the window's first
    calibration: float  # the mean loss of the epoch's batches, each before its own step
    heldout: float  # the error after the epoch, in the measure of the loss: relative or standardized
    judged: float  # the error after the epoch by which the guard compares states, see `Error.judged`
    lr: float  # the learning rate that its descent began with, or rose to in its warm-up
    relative_lr: float  # the same, divided by the root mean square of the kept weights before the descent
    steps: int  # how many it took
    last_part: bool = False  # whether only the last part of the window was trained


@dataclass(frozen=True)
class Failure:
    """An error became NaN or infinite."""

    what: str  # which error, and what it became
    epoch: int  # as in `Epoch.number`
    lr_name: str  # the setting that the learning rate comes from
    lr: float

    def __str__(self) -> str:
        return f"{self.what} in epoch {self.epoch}; lower {self.lr_name} (the learning rate, now {self.lr:g})"


@dataclass(frozen=True)
class Fit:
    """What a solver did to a window."""

    before: Errors | None = None  # None if they were not measured: they equal those after
    epochs: tuple[Epoch, ...] = ()
    planned_epochs: int = 0  # how many there would have been without an early stop
    kept_epoch: int = 0  # the epoch whose state the window keeps; 0 is the state before
    guarded: bool = False  # whether that is the state of the lowest held-out error
    relative_lr: float | None = None  # the rate asked for, divided by the RMS of the kept weights before the fit
    failures: tuple[Failure, ...] = ()  # of its descents, each of which then went back to its best state


class Objective(ABC):
    """What a descent minimizes, and the held-out error that it is judged by."""

    parameters: Sequence[nn.Parameter]
    """All that may change: float32 leaves, exactly zero where masked."""
    masks: Sequence[Tensor | None]
    """For each parameter, bool and of its shape, True where it may change; None if all of it may."""
    sized: Sequence[bool]
    """For each parameter, whether its size counts for a relative rate: if it is pruned in this run, or, if none is, if
    it is of a linear."""
    samples: int
    """How many calibration samples there are; they are numbered from 0."""
    ranks: Ranks = ALONE
    """The processes that fit it together, each on its own samples."""
    scale: Tensor | None = None
    """What the loss divides each feature's differences by, (hidden,), float32; None: the root of the mean power."""
    half: bool = False
    """Whether gradients pass through float16; the loss must then be scaled up so that they do not underflow."""

    @abstractmethod
    def loss(self, samples: Tensor) -> Tensor:
        """The mean loss of some of this rank's calibration samples (batch,), with gradients.

        They are given by this rank's own numbers (see `Ranks.own`).
        """

    @abstractmethod
    def heldout_error(self) -> Error:
        """The error over the held-out samples alone."""

    @contextmanager
    def fitting(self, what: str) -> Iterator[None]:
        """Within this context, parameters record gradients, and a `NumericalError` names what was fitted."""
        self._record_gradients_(True)
        try:
            with naming(what):
                yield
        finally:
            self._record_gradients_(False)

    def _record_gradients_(self, on: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(on)
            parameter.grad = None


class Problem(Objective):
    """One window to be fitted."""

    @abstractmethod
    def outputs(self, samples: Tensor) -> Tensor:
        """The window's outputs (batch, tokens, hidden), with gradients; samples are numbered as for `loss`."""

    @abstractmethod
    def targets(self, samples: Tensor) -> Tensor:
        """The targets (batch, tokens, hidden) of the same samples; the caller may overwrite them."""

    def loss(self, samples: Tensor) -> Tensor:
        """The mean square of the outputs' differences from the targets, divided by the mean power of all targets.

        So neither the hidden size nor massive activations change the scale of the gradients. If there is a scale of
        each feature, the loss is the mean of ((outputs - targets) / scale)^2 instead.
        """
        targets = self.targets(samples)  # first, so that they are sent to a GPU before it needs them
        mean = mean_square_(self.outputs(samples).float(), targets, self.scale)
        return mean if self.scale is not None else mean / (self.target_power() or 1.0)

    @abstractmethod
    def errors_before(self) -> Errors:
        """The errors over all calibration and all held-out samples; call it before anything of the window is fitted."""

    @abstractmethod
    def target_power(self) -> float:
        """The mean square of all calibration targets, which losses are divided by."""

    @abstractmethod
    def last_part(self) -> AbstractContextManager[Problem | None]:
        """The same problem with all but the window's last part fixed; None if it has only one part."""


def finite_errors(problem: Problem) -> Errors:
    """The errors before anything is fitted; raises `NumericalError` if they are not finite."""
    errors = problem.errors_before()
    if not errors.finite:
        raise NumericalError("the window's outputs are not finite before its reconstruction")
    return errors


class Solver(ABC):
    """Fits the weights of a window under its masks."""

    @abstractmethod
    def fit(self, problem: Problem, seed: int, progress: Callable[[Epoch], None]) -> Fit:
        """Fit the problem's parameters in place; masked weights stay exactly zero.

        Args:
            problem: the window.
            seed: determines everything random in it.
            progress: called after each epoch.

        Raises:
            NumericalError: the loss is not finite, and no guard has kept an earlier state.
        """

    @abstractmethod
    def planned(self, blocks: int) -> int:
        """How many epochs a window of this many blocks takes if it does not stop early."""

    @abstractmethod
    def batch_sizes(self, samples: int) -> set[int]:
        """The sizes of the batches that are passed through a window, for this many samples in all."""


@final
class NoSolver(Solver):
    """Fits nothing: the pruner's own update stays (the LR rung of the paper)."""

    def planned(self, blocks: int) -> int:
        return 0

    def batch_sizes(self, samples: int) -> set[int]:
        return set()

    def fit(self, problem: Problem, seed: int, progress: Callable[[Epoch], None]) -> Fit:
        del problem, seed, progress
        return Fit()
