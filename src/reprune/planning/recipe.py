"""Everything that determines a run's result, as one validated object. `layers` merges it from defaults, file and flags.

`reconstruct` names a rung of the paper's ladder and gives the defaults of `schedule`, `teacher` and `solver.name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sized
from contextlib import suppress
from itertools import islice
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Self, final

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from reprune.errors import InputError
from reprune.files.yaml_text import write_yaml
from reprune.math.adam import Adam
from reprune.math.magnitude import Magnitude
from reprune.math.patterns import Pattern, parse_pattern
from reprune.math.pruner import Pruner
from reprune.math.sparsegpt import SparseGPT
from reprune.math.wanda import Wanda
from reprune.math.weight_update import WeightUpdate
from reprune.planning import pruners
from reprune.planning.axes import PRUNERS, Part, Rung
from reprune.planning.choice import Choice
from reprune.planning.descents import DistillRecipe, RecipePart, SolverRecipe
from reprune.planning.devices import is_device
from reprune.planning.generation.language import ANY, can_tell, wrong_language
from reprune.planning.generation.settings import FILTERS, PREFIX, Generation, generation, wrong_filters
from reprune.planning.sparsities import Sparsities

RUNG_SETTINGS: Mapping[str, dict[str, Any]] = {
    "LR": {"schedule": {"size": 1, "stride": 1}, "teacher": "local", "solver": {"name": "none"}},
    "BR": {"schedule": {"size": 1, "stride": 1}, "teacher": "local", "solver": {"name": "adam"}},
    "BR+GP": {"schedule": {"size": 1, "stride": 1}, "teacher": "global", "solver": {"name": "adam"}},
    "BR+GP+CR": {"schedule": {"size": 2, "stride": 1}, "teacher": "global", "solver": {"name": "adam"}},
    "auto": {"schedule": {"size": 2, "stride": 1}, "teacher": "global", "solver": {"name": "widening"}},
}
"""The paper's reconstruction ladder (its section 3), each rung as a point on three axes; and `auto`, which chooses."""

MOST_NAMES = 10_000  # far more than anybody writes
_FIRST_KEYS: Mapping[str, tuple[str, type]] = {
    "pruner": ("name", str),
    "solver": ("name", str),
    "allocation": ("name", str),
    "self_generate": ("samples", Integral),
    "distill": ("blocks", Integral),
}


def in_full(key: str, value: Any) -> Any:
    """Let a part be given by the value of its first key: `pruner: wanda` for `pruner: {name: wanda}`."""
    if key not in _FIRST_KEYS or isinstance(value, bool):
        return value
    first, kind = _FIRST_KEYS[key]
    return {first: value} if isinstance(value, kind) else value


def _written(value: Any) -> str:
    """Let `sparsity: 0.5` stand for `sparsity: "0.5"`; raises `ValueError` for anything that is not a pattern."""
    text = str(value) if isinstance(value, Real) and not isinstance(value, bool) else value  # NumPy's too
    if not isinstance(text, str):
        raise ValueError(f"expected a fraction such as 0.5, or a pattern such as 2:4; got {value!r:.80}")
    try:
        parse_pattern(text)
    except InputError as error:
        raise ValueError(str(error).removeprefix("sparsity: ")) from None
    return text


def _size(value: Any) -> Any:
    """Accept `8e9`, `8 GB` and `7.5GiB` as a size in bytes, but no text that only begins with a size."""
    if isinstance(value, str) and re.fullmatch(r"\s*(\d*\.?\d+\s*[A-Za-z]+|\d+)\s*", value):
        return value  # ByteSize parses it
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and float(value) >= 0 and float(value).is_integer():
            return int(float(value))
    raise ValueError(f"expected a number of bytes, or one with a unit, such as 8GB or 500 MiB, got {value!r:.80}")


@final
class PrunerRecipe(RecipePart):
    """Which pruner, and its settings."""

    name: str = "sparsegpt"  # see `reprune.planning.pruners`
    settings: dict[str, JsonValue] = Field({})  # for a pruner of another package
    damping: float = Field(0.01, gt=0)  # SparseGPT: share of the mean diagonal of H
    block_size: int = Field(128, ge=1)  # SparseGPT: columns between lazy updates
    update: Literal["pruner", "least-squares"] = "pruner"  # of the kept weights, under the pruner's mask
    ridge: float = Field(1.0, gt=0)  # of that update: a share of each input's squared norm
    sequential: bool = False  # gather a group's statistics after pruning the groups before it
    min_tokens: int = Field(32, ge=0)  # an expert that fewer calibration tokens reach is pruned by magnitude
    statistics: Literal["all", "first"] = "all"  # from all calibration samples, or the first source's (the paper's way)

    def build(self, products: torch.dtype = torch.float32) -> Pruner[Any]:
        """The pruner; raises `InputError` if there is none of that name, or if it rejects the settings.

        Args:
            products: the dtype of a least-squares update's products, float32 or bfloat16.
        """
        if self.settings and self.name in PRUNERS:
            own = "pruner.damping and pruner.block_size" if self.name == "sparsegpt" else "pruner.update"
            given = ", ".join(self.settings)
            raise InputError(
                "pruner.settings are for pruners that other packages bring, "
                f"not for {self.name}; it has {own} (got {given})."
            )
        match self.name:
            case "magnitude":
                made: Magnitude | Wanda | SparseGPT = Magnitude()
            case "wanda":
                made = Wanda()
            case "sparsegpt":
                made = SparseGPT(damping=self.damping, block_size=self.block_size)
            case name:
                return pruners.build(name, self.settings)
        return made if self.update == "pruner" else WeightUpdate(made, self.ridge, products=products)


@final
class ScheduleRecipe(RecipePart):
    """Windows of `size` blocks, each beginning `stride` blocks after the one before."""

    size: int = Field(1, ge=1)
    stride: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride > self.size:
            raise ValueError(f"stride {self.stride} is larger than size {self.size}, which would leave blocks out")
        return self


@final
class SelfGenerateRecipe(RecipePart):
    """How many calibration texts the dense model writes itself, and how (see `reprune.planning.generation`)."""

    samples: int = Field(0, ge=0, lt=2**63)  # beside those of the calibration sources
    length: int | None = Field(None, gt=PREFIX)  # the most tokens of a text; None: twice those of a sample
    temperature: float = Field(1.0, gt=0)
    top_p: float | None = Field(None, gt=0, lt=1)
    top_k: int | None = Field(None, ge=1)
    language: str = "en"
    filters: tuple[str, ...] = FILTERS
    batch_size: int = Field(64, ge=1, lt=2**31)  # texts written at a time, about

    @field_validator("language", mode="before")
    @classmethod
    def _norwegian(cls, value: Any) -> Any:
        """Take `language: no`, which YAML reads as false, for the code that it is."""
        return "no" if value is False else value

    @field_validator("language")
    @classmethod
    def _can_be_told(cls, value: str) -> str:
        usual = value in (ANY, "en")  # loading the others takes a second
        if not usual and can_tell() and (wrong := wrong_language(value)):
            raise ValueError(f"{wrong}, got {value}")
        return value

    @field_validator("filters")
    @classmethod
    def _are_filters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := wrong_filters(value):
            raise ValueError(wrong)
        return value

    def build(self, tokens: int, most: int | None, seed: int) -> Generation:
        """Settings of generation; a text has at least the `tokens` of a sample, and at most the `most` of the model."""
        least = max(tokens, PREFIX + 1)
        length = max(self.length or 2 * tokens, least)
        own = self.model_dump(exclude={"samples", "length"})
        own |= {"length": length if most is None else min(length, most), "least": least}
        return generation({**own, "seed": seed})


@final
class AllocationRecipe(RecipePart):
    """How the sparsity is shared out over blocks (see `reprune.math.allocation`)."""

    name: Literal["uniform", "owl", "by-error"] = "uniform"
    spread: float = Field(0.08, gt=0, lt=0.5)  # owl: half the largest difference; by-error: that from the total
    outlier: float = Field(5.0, gt=1)  # owl: scores above this multiple of their mean are outliers


@final
class StreamsRecipe(RecipePart):
    """Where the hidden states of the samples are kept."""

    memory: Annotated[ByteSize, BeforeValidator(_size)] = ByteSize(8 * 10**9)  # of all; what exceeds it goes to files


@final
class Recipe(RecipePart, BaseModel):  # the latter again, so that ruff knows pydantic copies its defaults
    """Everything that decides a run's result."""

    model: str = Field(min_length=1)
    pruner: PrunerRecipe = PrunerRecipe()
    sparsity: Annotated[str, BeforeValidator(_written)] = "0.5"
    reconstruct: Rung = "BR+GP"
    schedule: ScheduleRecipe = ScheduleRecipe()
    teacher: Literal["local", "global"] = "global"
    solver: SolverRecipe = SolverRecipe()
    distill: DistillRecipe = DistillRecipe()
    guard: bool = True  # a window keeps its state of the lowest held-out error
    calibration: list[str] = ["c4"]  # empty if there are only self-generated texts
    self_generate: SelfGenerateRecipe = SelfGenerateRecipe()
    heldout: list[str] = []  # empty: an eighth as many more samples from the calibration sources
    samples: int = Field(256, ge=1, lt=2**63)
    seqlen: int | None = Field(None, ge=2, lt=2**31)  # None: 1024, or the model's longest sequence if that is shorter
    only: Part = "all"  # "all", or only the linears of the attention, or only the others
    include: list[str] = []  # names of linears, as patterns, that are pruned; none: all
    exclude: list[str] = []  # names of linears, as patterns, that stay dense
    sparsity_by_name: dict[str, Annotated[str, BeforeValidator(_written)]] = {}  # patterns of names
    allocation: AllocationRecipe = AllocationRecipe()
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    streams: StreamsRecipe = StreamsRecipe()
    trust_remote_code: bool = False

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        if not is_device(value):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return value

    @field_validator("calibration", "heldout", "include", "exclude", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, Iterable) and not isinstance(value, Sized):  # it may have no end
            value = list(islice(value, MOST_NAMES + 1))
            if len(value) > MOST_NAMES:
                raise ValueError(f"expected a name, or several, got more than {MOST_NAMES:,}")
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, content: Any) -> Any:
        """Expand short forms; a recipe with self-generated texts and no sources calibrates on these texts alone."""
        if not isinstance(content, dict):
            return content
        content = {key: in_full(key, value) for key, value in content.items()}
        own = content.get("self_generate")
        if isinstance(own, SelfGenerateRecipe) or (isinstance(own, dict) and own.get("samples")):
            content.setdefault("calibration", [])
        return content

    @model_validator(mode="after")
    def _has_samples(self) -> Self:
        if not self.calibration and not self.self_generate.samples:
            raise ValueError("calibration: expected at least one source, or self_generate: N")
        return self

    @model_validator(mode="after")
    def _choice_is_guarded(self) -> Self:
        if self.solver.name == "widening" and not self.guard:
            raise ValueError(
                "reconstruct auto chooses by held-out error, which needs the guard; leave the guard on, or choose "
                "another rung"
            )
        return self

    @model_validator(mode="after")
    def _teacher_has_a_stream(self) -> Self:
        forced, routed = self.solver.teacher_forcing > 0, self.solver.routing == "teacher"
        if self.teacher != "global" and (forced or routed):
            setting = "teacher_forcing" if forced else "routing teacher"
            raise ValueError(
                f"solver.{setting} needs the dense model's own states, but the teacher is local (reconstruct "
                f"{self.reconstruct}); take a rung with GP, or teacher: global"
            )
        return self

    def planned_epochs(self, blocks: int) -> int:
        """How many epochs a window of this many blocks takes if it does not stop early."""
        return self.solver.build(self.guard).planned(blocks)

    def build_pruner(self) -> Pruner[Any]:
        """The pruner, for the recipe's precision; float16 is too narrow for sums of squares."""
        return self.pruner.build(torch.bfloat16 if self.precision in ("auto", "bfloat16") else torch.float32)

    def build_distillation(self) -> Adam | None:
        """The descent that fits the last blocks once more; None if the recipe has no distillation."""
        return self.distill.build(self.solver, self.guard) if self.distill.blocks else None

    def settled(self, samples: int) -> Self:
        """The recipe for this many calibration samples, with the solver's own defaults made explicit."""
        return self.model_copy(update={"solver": self.solver.settled(samples)})

    @property
    def choice(self) -> Choice:
        return Choice(self.only, tuple(self.include), tuple(self.exclude))

    @model_validator(mode="after")
    def _allocation_needs_a_share(self) -> Self:
        if self.allocation.name != "uniform" and self.pattern.group > 1:
            raise ValueError(
                f"allocation {self.allocation.name} shares out a fraction such as 0.6 over the blocks, but "
                f"{self.sparsity} is the same in every block; give a fraction, or leave allocation out"
            )
        return self

    @property
    def sparsities(self) -> Sparsities:
        by_name = {name: parse_pattern(sparsity) for name, sparsity in self.sparsity_by_name.items()}
        return Sparsities(self.pattern, by_name)

    @property
    def pattern(self) -> Pattern:
        return parse_pattern(self.sparsity)

    def to_yaml(self) -> str:
        """The recipe as YAML, from which the same recipe is read again."""
        return write_yaml(self.model_dump(mode="json"))
