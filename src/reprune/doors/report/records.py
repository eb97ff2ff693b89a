"""Reads the records that `prune` and `study` leave, and refuses what it can't read. Knows nothing of pages.

Only what a report shows is read; what was not measured is None, and what newer versions add is passed over.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from reprune.errors import InputError
from reprune.model.lock import is_held
from reprune.model.wellformed import read_json

RUN = "reprune.json"
STUDY = "study.json"

Value = float | None

_NULL = BeforeValidator(lambda given: {} if given is None else given)
"""Lets null stand for what is empty."""


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Change(_Read):
    """An error before and after the reconstruction of a window."""

    before: float
    after: float


class Judged(_Read):
    """The standardized error before and after; None without a descent, and in records of earlier versions."""

    before: Value = None
    after: Value = None


class Epoch(_Read):
    """The errors after an epoch, in the measure of the loss; on calibration samples, the mean on its way."""

    epoch: int
    relative_calibration_error: Value = None
    relative_heldout_error: Value = None
    standardized_heldout_error: Value = None
    relative_lr: Value = None


class Guard(_Read):
    """What the guard did to a window."""

    on: bool
    planned_epochs: int
    run_epochs: int
    stopped_early: bool
    restored: bool
    relative_heldout_error: Mapping[str, Value] = {}
    standardized_heldout_error: Mapping[str, Value] = {}

    @property
    def judged(self) -> Mapping[str, Value]:
        """The error for which it kept the state that it kept, of that one and of the last.

        The standardized one, if that is on record; but the plain one where the last state was worse by that alone.
        """
        last, kept = (self.standardized_heldout_error.get(which) for which in ("last", "kept"))
        standardized = last is not None and kept is not None and kept <= last
        return self.standardized_heldout_error if standardized else self.relative_heldout_error


class Exchange(_Read):
    """What several processes told each other, waiting included: the time of each."""

    seconds: tuple[float, ...] = Field(min_length=1)


class Window(_Read):
    """One entry of `windows`."""

    index: int
    blocks: tuple[int, ...]
    calibration_error: Change
    heldout_error: Change
    relative_calibration_error: Change
    relative_heldout_error: Change
    standardized_heldout_error: Judged = Judged()
    epochs: tuple[Epoch, ...]
    relative_lr: Value = None
    kept_epoch: int
    seconds: float
    loss: str = "squared"
    teacher_forcing: float = 0.0
    largest_feature: Value = None
    guard: Guard | None = None
    least_squares: tuple[dict[str, Any], ...] = ()
    reconstructed: tuple[int, ...] | None = None
    exchange: Exchange | None = None

    @property
    def standardized(self) -> bool:
        """Whether its relative errors are in the measure of the standardized loss."""
        return self.loss == "standardized"

    @property
    def judged_apart(self) -> bool:
        """Whether its states were told apart by another error than the one that its loss is of."""
        return bool(self.epochs) and not self.standardized and self.standardized_heldout_error.before is not None


class DistilledEpoch(_Read):
    """The divergences of an epoch, in nats a token; on calibration samples, the mean on its way."""

    epoch: int
    calibration_divergence: Value = None
    heldout_divergence: Value = None


class Distillation(_Read):
    """What fitting the last blocks to the dense model's predictions has done."""

    blocks: tuple[int, ...]
    heldout_divergence: Change
    epochs: tuple[DistilledEpoch, ...]
    kept_epoch: int
    seconds: float
    last_block: dict[str, Change] = {}


class Matrix(_Read):
    """One pruned matrix of a block."""

    name: str
    rows: int
    columns: int
    sparsity: float


class Block(_Read):
    """One entry of a run's `blocks`."""

    index: int
    sparsity: float
    calibration_error: float
    heldout_error: float
    relative_calibration_error: float
    relative_heldout_error: float
    matrices: tuple[Matrix, ...] = ()


class Memory(_Read):
    """The most memory that was held, in bytes."""

    host: int
    device: int = 0

    @property
    def most(self) -> int:
        """On the device where one was used, else on the host."""
        return self.device or self.host


class Origin(_Read):
    """The dense model."""

    name: str
    commit: str | None = None
    fingerprint: str | None = None

    @property
    def again(self) -> str:
        """The MODEL that is the same again: of a Hub's the commit, where a branch may move on."""
        by_path = self.name == self.commit  # of the cache, whose last part is all that is on record
        return self.name if self.commit is None or by_path else f"{self.name.partition('@')[0]}@{self.commit}"


class Text(_Read):
    """A text that samples were drawn from."""

    name: str
    role: str | None = None
    count: int | None = None
    sha256: str | None = None


class Data(_Read):
    """All samples of a run."""

    sha256: str | None = None
    sources: tuple[Text, ...] = ()


class Run(_Read):
    """reprune.json: what `prune` did."""

    recipe: dict[str, Any]
    model: Origin
    versions: dict[str, str]
    data: Data
    sparsity: float
    blocks: tuple[Block, ...] = Field(min_length=1)
    windows: tuple[Window, ...]
    distillation: Distillation | None = None
    seconds: float
    peak_memory_bytes: Memory
    peak_memory_bytes_by_rank: tuple[Memory, ...] = ()
    ranks: int = 1
    machine: dict[str, Any] = {}

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


class TestError(_Read):
    """The error of a block against the dense model on a test text."""

    __test__ = False  # no test class of pytest's
    normalized: Value = None
    relative: Value = None


class CellBlock(_Read):
    """One entry of a cell's `blocks`."""

    index: int
    sparsity: Value = None
    relative_calibration_error: Value = None
    relative_heldout_error: Value = None
    test_error: dict[str, TestError] = {}


class Accuracy(_Read):
    """The accuracy on a zero-shot task."""

    accuracy: Value = None
    standard_error: Value = None
    examples: int | None = None


class Perplexity(_Read):
    """A perplexity and its protocol."""

    perplexity: Value = None
    protocol: str | None = None
    seqlen: int | None = None
    windows: int | None = None
    text_sha256: str | None = None


class ZeroShot(_Read):
    """The accuracies on all zero-shot tasks."""

    mean: Value = None
    tasks: dict[str, Accuracy] = {}


class Dense(_Read):
    """What was measured of the dense model."""

    perplexity: dict[str, Perplexity] = {}
    zero_shot: Annotated[ZeroShot, _NULL] = ZeroShot()

    def perplexity_on(self, text: str) -> Value:
        """The perplexity on a text, if it was measured."""
        return self.perplexity.get(text, Perplexity()).perplexity


class Cell(_Read):
    """One entry of a study's `cells`: one run and what was measured of its result."""

    name: str
    pruner: str
    rung: str
    status: Literal["done", "failed", "pending"]
    sparsity: str | float = "0.5"
    only: str = "all"
    seed: int = 0
    self_generate: int = 0
    error: str | None = None
    folder: str | None = None
    calibration_error: Value = None
    heldout_error: Value = None
    relative_calibration_error: Value = None
    relative_heldout_error: Value = None
    test_error: dict[str, TestError] = {}
    perplexity: dict[str, Value] = {}
    zero_shot: Annotated[dict[str, Accuracy], _NULL] = {}
    zero_shot_mean: Value = None
    seconds: Value = None
    peak_memory_bytes: Memory | None = None
    blocks: tuple[CellBlock, ...] | None = None
    windows: tuple[Window, ...] | None = None


class Study(_Read):
    """study.json: what `study` did."""

    kind: Literal["reprune study"]
    format: Literal[1]
    model: Origin
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    measures: dict[str, Any] = {}
    data: dict[str, Data] = {}
    dense: Annotated[Dense, _NULL] = Dense()
    cells: tuple[Cell, ...] = Field(min_length=1)


def read_records(folder: Path) -> Run | Study:
    """What `folder` holds: the record of a study or that of a run.

    Raises:
        InputError: it holds neither, or one that is damaged or of another version.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that `reprune prune` or `reprune study` wrote")
    if (folder / STUDY).is_file():
        return _read(folder / STUDY, Study)
    if (folder / RUN).is_file():
        return _read(folder / RUN, Run)
    if (folder / ".reprune" / "run.json").is_file():
        if is_held(folder / ".reprune"):
            raise InputError(f"the run in {folder} is not finished; another process is working on it: wait for it")
        raise InputError(
            f"the run in {folder} is not finished; finish it first: reprune resume {shlex.quote(str(folder))}"
        )
    raise InputError(
        f"{folder} holds neither {RUN} nor {STUDY}; give the folder that `reprune prune` or `reprune study` wrote"
    )


_Record = TypeVar("_Record", Run, Study)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _read(path: Path, kind: type[_Record]) -> _Record:
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise InputError(f"{path} is damaged: expected JSON, {error}; run the command that wrote it again") from None
    try:
        return kind.model_validate(_printable(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InputError(
            f"{path} is not a record that this version of reprune can read: {place}: {first['msg'].lower()}; "
            "make the report with the version that wrote the record, or run the command again"
        ) from None


def _printable(content: Any) -> Any:
    """`content` with no character in its texts that a page can't hold."""
    match content:
        case str():
            return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", content)
        case list():
            return [_printable(value) for value in content]
        case dict():
            return {_printable(key): _printable(value) for key, value in content.items()}
        case _:
            return content
