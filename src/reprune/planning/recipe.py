"""Everything that decides a run's result, as one validated object that reads and writes YAML.

Options come in layers, the later over the earlier: defaults, recipe file, flags, `--set key.path=value`.
`reconstruct` names a rung of the paper's ladder and gives the defaults of `schedule`, `teacher` and `solver.name`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, final

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from reprune.errors import InputError
from reprune.math.adam import Adam
from reprune.math.least_squares import LeastSquares
from reprune.math.magnitude import Magnitude
from reprune.math.patterns import Pattern, parse_pattern
from reprune.math.pruner import Pruner
from reprune.math.solver import NoSolver, Solver
from reprune.math.sparsegpt import SparseGPT
from reprune.math.wanda import Wanda
from reprune.math.widening import Widening
from reprune.planning.choice import Choice, Part
from reprune.planning.generation.settings import FILTERS, PREFIX, Generation, generation
from reprune.planning.sources import KNOWN

Rung = Literal["LR", "BR", "BR+GP", "BR+GP+CR", "auto"]
RUNGS: Mapping[str, dict[str, Any]] = {
    "LR": {"schedule": {"size": 1, "stride": 1}, "teacher": "local", "solver": {"name": "none"}},
    "BR": {"schedule": {"size": 1, "stride": 1}, "teacher": "local", "solver": {"name": "adam"}},
    "BR+GP": {"schedule": {"size": 1, "stride": 1}, "teacher": "global", "solver": {"name": "adam"}},
    "BR+GP+CR": {"schedule": {"size": 2, "stride": 1}, "teacher": "global", "solver": {"name": "adam"}},
    "auto": {"schedule": {"size": 2, "stride": 1}, "teacher": "global", "solver": {"name": "widening"}},
}
"""The paper's reconstruction ladder (its section 3), each rung as a point on three axes; and `auto`, which chooses."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, content: Any) -> Any:
        """Refuse `samples: yes`, which would otherwise count as 1."""
        for key, value in content.items() if isinstance(content, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and field.annotation in (int, float, int | None):
                raise ValueError(f"{key}: expected a number, got {str(value).lower()}")
        return content


def _named(value: Any) -> Any:
    """Let `pruner: wanda` stand for `pruner: {name: wanda}`."""
    return {"name": value} if isinstance(value, str) else value


def _counted(value: Any) -> Any:
    """Let `self_generate: 32` stand for `self_generate: {samples: 32}`."""
    return {"samples": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _written(value: Any) -> Any:
    """Let `sparsity: 0.5` stand for `sparsity: "0.5"`."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class _Loader(yaml.SafeLoader):
    """YAML whose 2:4 is a pattern, not the number 124 in base 60 as in YAML 1.1."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


@final
class PrunerRecipe(_Part):
    """Which pruner, and its settings."""

    name: Literal["magnitude", "wanda", "sparsegpt"] = "sparsegpt"
    damping: float = Field(0.01, gt=0)  # SparseGPT: share of the mean diagonal of H
    block_size: int = Field(128, ge=1)  # SparseGPT: columns between lazy updates
    sequential: bool = False  # statistics of a group after the groups before it are pruned
    statistics: Literal["all", "first"] = "all"  # from all calibration samples, or the first source's (the paper's way)

    def build(self) -> Pruner[Any]:
        match self.name:
            case "magnitude":
                return Magnitude()
            case "wanda":
                return Wanda()
            case "sparsegpt":
                return SparseGPT(damping=self.damping, block_size=self.block_size)


@final
class ScheduleRecipe(_Part):
    """Windows of `size` blocks, each beginning `stride` blocks after the one before."""

    size: int = Field(1, ge=1)
    stride: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride > self.size:
            raise ValueError(f"stride {self.stride} is larger than size {self.size}, which would leave blocks out")
        return self


@final
class SolverRecipe(_Part):
    """Which solver, and its settings."""

    name: Literal["none", "adam", "widening"] = "adam"
    start: Literal["pruner", "least-squares"] = "pruner"  # the weights that it begins with
    ridge: float | None = Field(None, gt=0)  # of least squares, share of the mean diagonal; None: the best on held-out
    epochs: int = Field(10, ge=1)
    lr: float = Field(2e-4, gt=0)
    batch_size: int = Field(8, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)  # of a step's samples, how many at a time; None: all at once
    checkpointing: bool = False  # compute activations anew for the gradients, block by block
    rank: int | None = Field(None, ge=1)  # move low-rank updates of the matrices; None: all their weights
    betas: tuple[float, float] = (0.9, 0.95)
    patience: int = Field(2, ge=1)  # epochs in a row without a lower held-out error, after which the guard stops

    @model_validator(mode="after")
    def _micro_batches_are_small(self) -> Self:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is more than batch_size {self.batch_size}")
        return self

    @property
    def samples_at_a_time(self) -> int:
        """How many samples pass through a block together."""
        return self.micro_batch_size or self.batch_size

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("both must be at least 0 and below 1")
        return value

    def build_least_squares(self) -> LeastSquares | None:
        return LeastSquares(self.ridge) if self.start == "least-squares" else None

    def build(self, guard: bool) -> Solver:
        match self.name:
            case "none":
                return NoSolver()
            case "adam":
                return self._adam(self.epochs, guard)
            case "widening":
                # An epoch on one block of two costs half of one on both: together less than `epochs` on both take,
                # which leaves time for the tries of first steps. The rate falls over both as it does over one.
                whole = max(2 * self.epochs // 3, 1)
                part = max(self.epochs - whole, 1)
                adam = replace(self._adam(self.epochs, guard), try_first_step=True)
                middle = whole / (part + whole)
                return Widening(
                    last_part=replace(adam, epochs=part, decay=(1.0, middle)),
                    whole=replace(adam, epochs=whole, decay=(middle, 0.0)),
                    only_part=adam,
                )

    def _adam(self, epochs: int, guard: bool) -> Adam:
        return Adam(
            epochs, self.lr, self.batch_size, self.micro_batch_size, self.betas, guard, self.patience, self.rank
        )


@final
class SelfGenerateRecipe(_Part):
    """How many calibration texts the dense model writes itself, and how (see `reprune.planning.generation`)."""

    samples: int = Field(0, ge=0)  # beside those of the calibration sources
    length: int | None = Field(None, gt=PREFIX)  # tokens of a text at most; None: twice those of a sample
    temperature: float = Field(1.0, gt=0)
    top_p: float | None = Field(None, gt=0, lt=1)
    top_k: int | None = Field(None, ge=1)
    language: str = "en"
    filters: tuple[str, ...] = FILTERS
    batch_size: int = Field(64, ge=1)  # texts written at a time, about

    def build(self, tokens: int, most: int | None, seed: int) -> Generation:
        """The settings of generation.

        Args:
            tokens: of a sample, without those at its start that belong to no text; a text has as many at least.
            most: that the model takes; None where it has no limit.
            seed: of the recipe.
        """
        length = max(self.length or 2 * tokens, tokens)
        own = self.model_dump(exclude={"samples", "length"})
        own |= {"length": length if most is None else min(length, most), "least": max(tokens, PREFIX + 1)}
        return generation({**own, "seed": seed})


@final
class StreamsRecipe(_Part):
    """Where the hidden states of the samples are held."""

    memory: ByteSize = ByteSize(8 * 10**9)  # all streams together; those beyond it go to files


@final
class Recipe(_Part):
    """Everything that decides a run's result."""

    model: str = Field(min_length=1)
    pruner: Annotated[PrunerRecipe, BeforeValidator(_named)] = PrunerRecipe()
    sparsity: Annotated[str, BeforeValidator(_written)] = "0.5"
    reconstruct: Rung = "BR+GP"
    schedule: ScheduleRecipe = ScheduleRecipe()
    teacher: Literal["local", "global"] = "global"
    solver: Annotated[SolverRecipe, BeforeValidator(_named)] = SolverRecipe()
    guard: bool = True  # a window keeps its state of the lowest held-out error
    calibration: list[str] = ["c4"]  # none where only self-generated texts are asked for
    self_generate: Annotated[SelfGenerateRecipe, BeforeValidator(_counted)] = SelfGenerateRecipe()
    heldout: list[str] = []  # empty: an eighth as many samples again, from the calibration sources
    samples: int = Field(256, ge=1)
    seqlen: int | None = Field(None, ge=2)  # None: 1024, or the model's longest sequence if that is shorter
    only: Part = "all"  # prune only the linears of the attention, or only the others
    exclude: list[str] = []  # names of linears within a block, as patterns, that stay dense
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    streams: StreamsRecipe = StreamsRecipe()
    trust_remote_code: bool = False

    @field_validator("sparsity")
    @classmethod
    def _parses(cls, value: str) -> str:
        parse_pattern(value)
        return value

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return value

    @field_validator("calibration", "heldout", "exclude", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _own_texts_need_no_others(cls, content: Any) -> Any:
        """Without sources of its own, a recipe that has the model write texts calibrates on those alone."""
        if isinstance(content, dict) and "calibration" not in content:
            own = _counted(content.get("self_generate", 0))
            if isinstance(own, SelfGenerateRecipe) or (isinstance(own, dict) and own.get("samples")):
                return {**content, "calibration": []}
        return content

    @model_validator(mode="after")
    def _has_samples(self) -> Self:
        if not self.calibration and not self.self_generate.samples:
            raise ValueError("calibration: expected at least one source, or self_generate: N")
        return self

    @model_validator(mode="after")
    def _choice_is_guarded(self) -> Self:
        if self.solver.name == "widening" and not self.guard:
            raise ValueError("reconstruct auto chooses by held-out error, which guard: off ignores; leave the guard on")
        return self

    @property
    def choice(self) -> Choice:
        return Choice(self.only, tuple(self.exclude))

    @property
    def pattern(self) -> Pattern:
        return parse_pattern(self.sparsity)

    def to_yaml(self) -> str:
        """The recipe as YAML that reads back to the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(path: Path) -> dict[str, Any]:
    """The contents of a recipe file; raises `InputError` where it is no YAML mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--recipe {path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"--recipe {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"--recipe {path}: expected keys and values, such as 'sparsity: 0.5'; got {content!r:.80}.")
    for key in ("calibration", "heldout"):
        if isinstance(content.get(key), list):
            content[key] = [_found_beside(source, path.parent) for source in content[key]]
    return content


def _found_beside(source: Any, folder: Path) -> Any:
    """A relative path in a recipe file is relative to that file's folder, if it is there."""
    if not isinstance(source, str):
        return source
    named = re.sub(r"=\d+$", "", source)
    there = any(part and (folder / part).exists() for part in (named, named.rpartition(":")[0]))
    return str(folder / source) if there and named not in KNOWN else source


def parse_setting(text: str) -> dict[str, Any]:
    """Read one `key.path=value` of --set, the value as YAML, into nested mappings."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise InputError(f"--set {text}: expected key.path=value, such as --set schedule.size=3.")
    try:
        content: Any = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not valid YAML.") from None
    for part in reversed(key.strip().split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    return content


def resolve_recipe(
    model: str | None,
    file: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> Recipe:
    """Lay the layers over each other and validate the whole.

    Args:
        model: MODEL as given; None takes the recipe file's.
        file: a recipe file's contents.
        flags: what command-line flags say, nested as in the recipe.
        settings: `key.path=value` strings.

    Raises:
        InputError: an unknown key (the nearest known one is named) or a value that does not fit.
    """
    lower = _normal(file or {})
    upper = _normal(flags or {})
    for setting in settings:
        parsed = parse_setting(setting)
        if model is not None and "model" in parsed:
            raise InputError(f"--set {setting}: the model is given by MODEL; leave this out.")
        upper = _merged(upper, _normal(parsed))
    if "reconstruct" in upper:  # a rung asked for above replaces what the recipe file spells out below
        lower = {key: value for key, value in lower.items() if key not in ("schedule", "teacher")}
        if isinstance(lower.get("solver"), dict):
            lower["solver"] = {key: value for key, value in lower["solver"].items() if key != "name"}
    merged = _merged(lower, upper)
    if model is not None:
        merged["model"] = model
    rung = RUNGS.get(str(merged.get("reconstruct", Recipe.model_fields["reconstruct"].default)), {})
    merged = _merged(rung, merged)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def _normal(layer: Mapping[str, Any]) -> dict[str, Any]:
    short = {"pruner": _named, "solver": _named, "self_generate": _counted}
    return {key: short[key](value) if key in short else value for key, value in layer.items()}


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: ValidationError) -> str:
    """All that is wrong with a recipe, one line each."""
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _keys(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
            lines.append(f"{place}: unknown key; did you mean {near[0]}? Known here: {', '.join(known)}.")
        elif problem["type"] == "missing" and place == "model":
            lines.append(f"{place}: missing; give it, as in 'reprune prune MODEL --out DIR'.")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            said = said.removeprefix(f"{place}: ").rstrip(".")
            got = "" if "got " in said else f" (got {problem['input']!r:.80})"
            lines.append(f"{place}: {said[0].lower() + said[1:]}{got}." if place else f"{said}.")
    return "\n".join(lines)


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The known keys of the part of a recipe at `location`."""
    part: type[BaseModel] = Recipe
    for step in location:
        annotation = part.model_fields[str(step)].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        part = annotation
    return list(part.model_fields)
