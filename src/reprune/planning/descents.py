"""The parts of a recipe that decide how weights are fitted: the solver of windows, and distillation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reprune.math.adam import Adam
from reprune.math.least_squares import LeastSquares
from reprune.math.solver import NoSolver, Solver
from reprune.math.widening import Widening

PAPER_LR = Adam.lr
"""Adam's learning rate in all of the paper's experiments."""
PAPER_BETAS = Adam.betas
"""Adam's decay rates in all of the paper's experiments."""
_OWN_LR = "1%"
"""The default learning rate with the standardized loss, which is not the paper's."""
_SHORT_BETAS = (0.5, 0.95)
"""The default decay rates with the standardized loss, if a window takes few steps."""
_FEW_STEPS = 128
"""The most steps of a window with which these were measured to be better (docs/measurements/options.md)."""

_WARMUP = 1 / 8
"""The share of distillation's steps during which the learning rate rises."""

_NUMBERS = (int, float, int | None, float | None)


class RecipePart(BaseModel):
    """A part of a recipe: frozen, and it refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, content: Any) -> Any:
        """Refuse `samples: yes`, which would otherwise count as 1."""
        for key, value in content.items() if isinstance(content, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and field.annotation in _NUMBERS:
                raise ValueError(f"{key}: expected a number, got {str(value).lower()}")
        return content


def parse_rate(given: Any) -> tuple[float, bool]:
    """Parse `2e-4`, or `1%` of the weights' root mean square; raises `ValueError` if it is neither.

    Returns:
        The learning rate, and whether it is a share of that root mean square.
    """
    text = str(given).strip()
    relative = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("expected a number above 0, or a share of the weights' root mean square, such as 1%")
    return (value / 100 if relative else value), relative


def _read_rate(given: Any) -> Any:
    if given is None:
        return None
    value, relative = parse_rate(given)
    return given.strip() if relative else value


@final
class SolverRecipe(RecipePart):
    """Which solver, and its settings."""

    name: Literal["none", "adam", "widening"] = "adam"
    start: Literal["pruner", "least-squares"] = "pruner"  # the weights that the fit begins with
    ridge: float | None = Field(None, gt=0)  # of least squares, over the mean diagonal; None: the best on held-out
    loss: Literal["squared", "standardized"] | None = None  # plain, or with scaled features; None: by the solver
    epochs: int = Field(10, ge=1, lt=2**63)
    lr: float | str | None = None  # see `parse_rate`; None: by the loss
    batch_size: int = Field(8, ge=1, lt=2**63)
    micro_batch_size: int | None = Field(None, ge=1)  # samples of a step that are computed at a time; None: all
    checkpointing: bool = False  # recompute activations in the backward pass, block by block
    rank: int | None = Field(None, ge=1)  # train low-rank updates of the matrices; None: all their weights
    compact: bool = False  # hold gradients, moments and the guard's copy for kept weights only
    betas: tuple[float, float] | None = None  # Adam's decay rates; None: by the loss and the number of steps
    routing: Literal["student", "teacher"] = "student"  # whose choice of experts is used in the fit
    teacher_forcing: float = Field(0.0, ge=0, le=1)  # the dense model's share in the states that windows are fitted on
    patience: int = Field(2, ge=1)  # epochs in a row without a lower held-out error, after which the guard stops

    @model_validator(mode="after")
    def _micro_batches_are_small(self) -> Self:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is more than batch_size {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _one_way_to_move(self) -> Self:
        if self.compact and self.rank is not None:
            raise ValueError(f"compact and rank ({self.rank}) cannot be combined; leave one of them out")
        return self

    _is_a_rate = field_validator("lr", mode="before")(_read_rate)

    @property
    def samples_at_a_time(self) -> int:
        """How many samples pass through a block at a time."""
        return self.micro_batch_size or self.batch_size

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not all(0 <= beta < 1 for beta in value):
            raise ValueError("expected two numbers of at least 0 and below 1")
        return value

    @property
    def minimized(self) -> Literal["squared", "standardized"]:
        """The loss: by default the paper's, unless the solver is not the paper's."""
        return self.loss or ("standardized" if self.name == "widening" else "squared")

    @property
    def standardizes(self) -> bool:
        """Whether a window's relative errors are standardized: if a descent minimizes the standardized loss."""
        return self.minimized == "standardized" and self.name != "none"

    @property
    def rate(self) -> float | str:
        """The learning rate as in a recipe: by default the paper's, unless the loss is not the paper's.

        It is then relative to the weights, because what suits one model is a tenth of what suits another
        (docs/measurements/models.md).
        """
        return self.lr or (_OWN_LR if self.standardizes else PAPER_LR)

    def steps(self, samples: int, epochs: int) -> int:
        """The number of gradient steps that these epochs take over this many samples."""
        return epochs * math.ceil(samples / self.batch_size)

    def settled(self, samples: int) -> Self:
        """A copy with loss, learning rate and betas set, for a run with this many calibration samples.

        The betas are by default the paper's, unless the loss is not the paper's and there are few steps. Adam then
        averages gradients over fewer.
        """
        few = self.standardizes and self.steps(samples, self.epochs) <= _FEW_STEPS
        betas = self.betas or (_SHORT_BETAS if few else PAPER_BETAS)
        return self.model_copy(update={"loss": self.minimized, "lr": self.rate, "betas": betas})

    @property
    def repeats_routes(self) -> bool:
        """Whether a fit repeats the dense model's choices of experts."""
        return self.routing == "teacher" and self.name != "none"

    def build_least_squares(self) -> LeastSquares | None:
        return LeastSquares(self.ridge) if self.start == "least-squares" else None

    def build(self, guard: bool) -> Solver:
        if self.name == "none":
            return NoSolver()
        adam = self.descent(self.epochs, self.rate, guard)
        if self.name == "adam":
            return adam
        # An epoch on one block of two costs half of one on both. So both descents together take less time than
        # `epochs` on both blocks, which leaves time to try first steps. The rate decays over both as over one descent.
        whole = max(2 * self.epochs // 3, 1)
        part = max(self.epochs - whole, 1)
        middle = whole / (part + whole)
        adam = replace(adam, try_first_step=True)
        return Widening(
            last_part=replace(adam, epochs=part, decay=(1.0, middle)),
            whole=replace(adam, epochs=whole, decay=(middle, 0.0)),
            only_part=adam,
        )

    def descent(self, epochs: int, rate: float | str, guard: bool) -> Adam:
        """Adam with these settings, except for the given number of epochs and learning rate."""
        lr, relative = parse_rate(rate)
        return Adam(
            epochs,
            lr,
            self.batch_size,
            self.micro_batch_size,
            self.betas or PAPER_BETAS,
            guard,
            self.patience,
            rank=self.rank,
            compact=self.compact,
            relative=relative,
        )


@final
class DistillRecipe(RecipePart):
    """Whether the last blocks are fitted once more, to the dense model's predictions (see `engine.distillation`)."""

    blocks: int = Field(0, ge=0)  # how many; 0: no distillation
    epochs: int | None = Field(None, ge=1, lt=2**63)  # None: as many as the solver's
    lr: float | str = "0.2%"  # see `parse_rate`

    _is_a_rate = field_validator("lr", mode="before")(_read_rate)

    def epochs_beside(self, solver: SolverRecipe) -> int:
        """The number of epochs, which by default is that of the windows' solver."""
        return self.epochs or solver.epochs

    def build(self, solver: SolverRecipe, guard: bool) -> Adam:
        """A descent with the solver's other settings.

        The weights are already near their optimum, so the rate has a warm-up, and the first step is tried.
        """
        descent = solver.descent(self.epochs_beside(solver), self.lr, guard)
        return replace(descent, warmup=_WARMUP, try_first_step=True, lr_name="distill.lr")
