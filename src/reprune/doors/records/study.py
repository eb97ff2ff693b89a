"""The fields of study.json: a study writes it by these names, and all that is shown of a study is read by them.

Until something is measured, its number is None, and a mapping by text or task lacks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from reprune.doors.records.run import Data, Memory, Origin, Read, Value, Window, counted_by_machine

FILE = "study.json"
ERRORS = ("calibration_error", "heldout_error", "relative_calibration_error", "relative_heldout_error")
"""The errors of a block; a cell has those of its last block."""


class TestError(Read):
    """A block's error against the dense model on a test text: in the paper's form, and relative."""

    __test__ = False  # not a test class of pytest
    normalized: float
    relative: float


class CellBlock(Read):
    """One block of a cell's sparse model."""

    index: int
    sparsity: float
    calibration_error: float
    heldout_error: float
    relative_calibration_error: float
    relative_heldout_error: float
    test_error: Mapping[str, TestError] = {}


class Accuracy(Read):
    """The accuracy on a zero-shot task."""

    accuracy: Value = None
    standard_error: Value = None  # None for a single example
    examples: int = 0


class Perplexity(Read):
    """A perplexity, and all that decides it."""

    perplexity: float
    protocol: str
    seqlen: int
    windows: int
    tokens: int
    bos: bool
    begun: bool
    precision: str
    text_sha256: str


class ZeroShot(Read):
    """The accuracies on all zero-shot tasks, and what decides them; empty if there are none."""

    mean: Value = None
    tasks: Mapping[str, Accuracy] = {}
    data: str = ""
    precision: str = ""
    harness: str = ""


class Dense(Read):
    """The measurements of the dense model."""

    perplexity: Mapping[str, Perplexity]
    zero_shot: Annotated[ZeroShot, BeforeValidator(lambda given: {} if given is None else given)]


class Cell(Read):
    """One run of a study's grid, and what was measured of its result."""

    name: str
    pruner: str
    sparsity: str  # the same for all cells
    rung: str
    only: str
    seed: int
    self_generate: int  # number of samples that the model has written itself, beside the others
    status: Literal["pending", "done", "failed"]
    error: str | None = None
    folder: str  # within the study's folder
    calibration_error: Value = None  # this and the next four: of the last block
    heldout_error: Value = None
    relative_calibration_error: Value = None
    relative_heldout_error: Value = None
    test_error: Mapping[str, TestError] = {}
    perplexity: Mapping[str, Value] = {}
    zero_shot: Mapping[str, Accuracy] = {}
    zero_shot_mean: Value = None
    seconds: Value = None  # of pruning and reconstruction
    measuring_seconds: float = 0.0
    peak_memory_bytes: Memory | None = None
    machine: Mapping[str, Any] | None = None  # that pruned it
    blocks: tuple[CellBlock, ...] = ()
    windows: tuple[Window, ...] = ()


class Study(Read):
    """The whole of study.json."""

    kind: Literal["reprune study"]
    format: Literal[1]
    model: Origin
    versions: Mapping[str, str]
    packages: Mapping[str, str]  # by pruner: the package that provides it
    machine: Mapping[str, Any]  # on which the study was begun
    settings: Mapping[str, Any]  # the recipe's keys that all cells have in common
    measures: Mapping[str, Any]  # what is measured, and how
    data: Mapping[str, Data]  # all samples and their sources, by what decides them (`Cell.samples` of the grid)
    dense: Dense
    cells: tuple[Cell, ...] = Field(min_length=1)

    @property
    def machines(self) -> list[tuple[Mapping[str, Any], int]]:
        """The machines that pruned cells, with the number of these cells; before any is pruned, only `machine`."""
        known = [cell.machine or self.machine for cell in self.cells if cell.seconds is not None]
        return counted_by_machine(known) or [(self.machine, 0)]
