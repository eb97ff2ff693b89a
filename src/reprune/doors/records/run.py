"""The parts of reprune.json that are shown; fields that newer versions add are ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

Value = float | None
"""None: not measured."""

DOMINANT = 0.5
"""A feature with a larger share of the power than this dominates the squared error."""


class Read(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def fault(error: ValidationError) -> str:
    """The first fault in a record, as "windows.1.kept_epoch: field required"."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{place}: {first['msg'].lower()}"


def counted_by_machine(machines: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    """Each machine, in the order in which they first appear, with how often it appears."""
    return [(one, machines.count(one)) for place, one in enumerate(machines) if one not in machines[:place]]


class Change(Read):
    """An error before and after the reconstruction of a window."""

    before: FiniteFloat  # a run ends with an error before it records another number
    after: FiniteFloat


class Judged(Read):
    """The standardized error before and after; None if Adam did not train the window."""

    before: Value
    after: Value


class Epoch(Read):
    """The errors after an epoch, in the measure of the loss; the calibration error is a mean over the epoch."""

    relative_calibration_error: float
    relative_heldout_error: float
    standardized_heldout_error: float
    relative_lr: float
    steps: int | None = Field(None, ge=1)  # this and the next: not recorded by older versions
    blocks: tuple[int, ...] = ()


class Kept(Read):
    """An error of the last state and of the kept one."""

    last: float
    kept: float


class Guard(Read):
    """What the guard did to a window."""

    on: bool
    planned_epochs: int
    run_epochs: int
    stopped_early: bool
    restored: bool
    failures: tuple[str, ...] = ()  # errors that became NaN or infinite
    relative_heldout_error: Kept
    standardized_heldout_error: Kept

    @property
    def judged(self) -> Kept:
        """The error by which the kept state was chosen.

        It is the standardized one, unless the last state was worse only by the plain one.
        """
        standardized = self.standardized_heldout_error
        return standardized if standardized.kept <= standardized.last else self.relative_heldout_error


class Exchange(Read):
    """The time that each of several processes spent on exchange, including waiting."""

    seconds: tuple[float, ...] = Field(min_length=1)


class Window(Read):
    """One entry of `windows`."""

    index: int
    blocks: tuple[int, ...]
    relative_calibration_error: Change
    relative_heldout_error: Change
    standardized_heldout_error: Judged
    epochs: tuple[Epoch, ...]
    relative_lr: Value
    kept_epoch: int = Field(ge=0, lt=2**63)
    seconds: float
    loss: str
    teacher_forcing: float
    largest_feature: Value
    guard: Guard | None  # None: no epoch was planned
    least_squares: tuple[dict[str, Any], ...]
    reconstructed: tuple[int, ...]
    machine: dict[str, Any] | None = None  # that did it; None: the one that finished the run
    exchange: Exchange | None = None  # None for a single process

    @property
    def standardized(self) -> bool:
        """Whether its relative errors are in the measure of the standardized loss."""
        return self.loss == "standardized"

    @property
    def judged_apart(self) -> bool:
        """Whether its states were compared by another error than that of its loss."""
        return bool(self.epochs) and not self.standardized

    @property
    def failures(self) -> tuple[str, ...]:
        """Errors of its fit that became NaN or infinite; the guard then put the best state before that back."""
        return () if self.guard is None else self.guard.failures


class DistilledEpoch(Read):
    """The divergences of an epoch, in nats per token; the calibration divergence is a mean over the epoch."""

    calibration_divergence: float
    heldout_divergence: float


class LastBlock(Read):
    """The change of the last block's own error by the distillation."""

    relative_heldout_error: Change


class Distillation(Read):
    """The effect of fitting the last blocks to the dense model's predictions."""

    blocks: tuple[int, ...]
    heldout_divergence: Change
    epochs: tuple[DistilledEpoch, ...]
    kept_epoch: int = Field(ge=0, lt=2**63)
    failures: tuple[str, ...] = ()  # as for windows
    seconds: float
    last_block: LastBlock
    machine: dict[str, Any] | None = None  # as for windows


class Matrix(Read):
    """One pruned matrix of a block."""

    name: str
    sparsity: float


class Block(Read):
    """One entry of a run's `blocks`."""

    index: int
    calibration_error: FiniteFloat
    heldout_error: FiniteFloat
    relative_calibration_error: FiniteFloat
    relative_heldout_error: FiniteFloat
    matrices: tuple[Matrix, ...]


class Memory(Read):
    """The most memory that was held, in bytes."""

    host: int = Field(lt=2**63)
    device: int = Field(lt=2**63)  # 0 if none was used

    @property
    def most(self) -> int:
        """The device's if one was used, else the host's."""
        return self.device or self.host


class Origin(Read):
    """The dense model."""

    name: str
    commit: str | None = None  # of a Hub model
    fingerprint: str
    files: Mapping[str, str]  # SHA-256 of each

    @property
    def again(self) -> str:
        """The MODEL argument that gives the same model again: a Hub model's commit, as its branch may move on."""
        return self.name if self.commit is None else f"{self.name.partition('@')[0]}@{self.commit}"


class Text(Read):
    """A text that samples were drawn from."""

    name: str
    role: str
    count: int
    sha256: str


class Data(Read):
    """All samples of a run."""

    sha256: str
    sources: tuple[Text, ...]


class OwnTexts(Read):
    """The texts that the model wrote before the run."""

    texts: int  # that were asked for, also those that were in the cache
    seconds: float  # of writing the others


class Run(Read):
    """reprune.json: what `prune` did."""

    recipe: dict[str, Any]
    model: Origin
    versions: dict[str, str]
    data: Data
    sparsity: float
    blocks: tuple[Block, ...] = Field(min_length=1)
    windows: tuple[Window, ...] = Field(min_length=1)
    distillation: Distillation | None
    seconds: float  # without those of `self_generation`
    self_generation: OwnTexts | None = None
    peak_memory_bytes: Memory
    peak_memory_bytes_by_rank: tuple[Memory, ...] = ()  # this and the next: if there were several ranks
    ranks: int = 1
    machine: dict[str, Any]

    @property
    def pruner(self) -> str | None:
        """Its name, if the recipe has one."""
        pruner = self.recipe.get("pruner")
        return pruner.get("name") if isinstance(pruner, dict) else pruner

    @property
    def peak(self) -> Memory:
        """The most memory that one of its processes held."""
        held = (self.peak_memory_bytes, *self.peak_memory_bytes_by_rank)
        return Memory(host=max(one.host for one in held), device=max(one.device for one in held))

    @property
    def machines(self) -> list[tuple[Mapping[str, Any], int]]:
        """The machines that did its windows and its distillation, with the number of these steps."""
        steps: list[Window | Distillation] = [*self.windows, *filter(None, [self.distillation])]
        return counted_by_machine([step.machine or self.machine for step in steps])

    @property
    def processes(self) -> tuple[int, ...]:
        """The number of processes; several numbers if the run went on with another one."""
        found = {1 if window.exchange is None else len(window.exchange.seconds) for window in self.windows}
        return tuple(sorted(found | {self.ranks}))

    @property
    def exchange(self) -> Value:
        """The mean share of the windows' time that processes spent on exchange; None for a single process."""
        pairs = [(window.exchange.seconds, window.seconds) for window in self.windows if window.exchange is not None]
        whole = sum(seconds for _, seconds in pairs)
        return sum(sum(spent) / len(spent) for spent, _ in pairs) / whole if whole else None
