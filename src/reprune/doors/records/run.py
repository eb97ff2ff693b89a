"""What reprune.json says of a run, as far as it is shown; what newer versions add is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Value = float | None
"""None where it was not measured."""

DOMINANT = 0.5
"""A feature with a larger share of the power than this rules the squared error."""


class Read(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


def fault(error: ValidationError) -> str:
    """The first thing that is wrong with a record: windows.1.kept_epoch: field required."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{place}: {first['msg'].lower()}"


class Change(Read):
    """An error before and after the reconstruction of a window."""

    before: float
    after: float


class Judged(Read):
    """The standardized error before and after; None without a descent."""

    before: Value
    after: Value


class Epoch(Read):
    """The errors after an epoch, in the measure of the loss; on calibration samples, the mean on its way."""

    epoch: int
    relative_calibration_error: float
    relative_heldout_error: float
    standardized_heldout_error: float
    relative_lr: float


class Kept(Read):
    """An error of the last state, and of the one that was kept."""

    last: float
    kept: float


class Guard(Read):
    """What the guard did to a window."""

    on: bool
    planned_epochs: int
    run_epochs: int
    stopped_early: bool
    restored: bool
    relative_heldout_error: Kept
    standardized_heldout_error: Kept

    @property
    def judged(self) -> Kept:
        """The error for which it kept the state that it kept.

        The standardized one; but the plain one where the last state was worse by that alone.
        """
        standardized = self.standardized_heldout_error
        return standardized if standardized.kept <= standardized.last else self.relative_heldout_error


class Exchange(Read):
    """What several processes told each other, waiting included: the time of each."""

    seconds: tuple[float, ...] = Field(min_length=1)


class Window(Read):
    """One entry of `windows`."""

    index: int
    blocks: tuple[int, ...]
    calibration_error: Change
    heldout_error: Change
    relative_calibration_error: Change
    relative_heldout_error: Change
    standardized_heldout_error: Judged
    epochs: tuple[Epoch, ...]
    relative_lr: Value
    kept_epoch: int
    seconds: float
    loss: str
    teacher_forcing: float
    largest_feature: Value
    guard: Guard | None
    least_squares: tuple[dict[str, Any], ...]
    reconstructed: tuple[int, ...]
    exchange: Exchange | None = None  # of one process there is none

    @property
    def standardized(self) -> bool:
        """Whether its relative errors are in the measure of the standardized loss."""
        return self.loss == "standardized"

    @property
    def judged_apart(self) -> bool:
        """Whether its states were told apart by another error than the one that its loss is of."""
        return bool(self.epochs) and not self.standardized


class DistilledEpoch(Read):
    """The divergences of an epoch, in nats a token; on calibration samples, the mean on its way."""

    epoch: int
    calibration_divergence: float
    heldout_divergence: float


class LastBlock(Read):
    """What it has done to the last block's own error."""

    relative_heldout_error: Change


class Distillation(Read):
    """What fitting the last blocks to the dense model's predictions has done."""

    blocks: tuple[int, ...]
    heldout_divergence: Change
    epochs: tuple[DistilledEpoch, ...]
    kept_epoch: int
    seconds: float
    last_block: LastBlock


class Matrix(Read):
    """One pruned matrix of a block."""

    name: str
    rows: int
    columns: int
    sparsity: float


class Block(Read):
    """One entry of a run's `blocks`."""

    index: int
    sparsity: float
    calibration_error: float
    heldout_error: float
    relative_calibration_error: float
    relative_heldout_error: float
    matrices: tuple[Matrix, ...]


class Memory(Read):
    """The most memory that was held, in bytes."""

    host: int
    device: int  # 0 where none was used

    @property
    def most(self) -> int:
        """On the device where one was used, else on the host."""
        return self.device or self.host


class Origin(Read):
    """The dense model."""

    name: str
    commit: str | None = None  # of a Hub's
    fingerprint: str
    files: Mapping[str, str]  # SHA-256 of each

    @property
    def again(self) -> str:
        """The MODEL that is the same again: of a Hub's the commit, where a branch may move on."""
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
    seconds: float
    peak_memory_bytes: Memory
    peak_memory_bytes_by_rank: tuple[Memory, ...] = ()  # this and the next: where there were several
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
    def processes(self) -> tuple[int, ...]:
        """How many did it; several numbers where it went on with another than before."""
        found = {1 if window.exchange is None else len(window.exchange.seconds) for window in self.windows}
        return tuple(sorted(found | {self.ranks}))

    @property
    def exchange(self) -> Value:
        """The share of the windows' time that processes spent on exchanging, on average; None where there was one."""
        pairs = [(window.exchange.seconds, window.seconds) for window in self.windows if window.exchange is not None]
        whole = sum(seconds for _, seconds in pairs)
        return sum(sum(spent) / len(spent) for spent, _ in pairs) / whole if whole else None
