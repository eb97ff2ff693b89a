"""Everything that determines which texts a model writes, as one validated object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reprune.errors import InputError
from reprune.model.sampler import Choice
from reprune.planning.generation.filters import (
    Filter,
    InLanguage,
    Likely,
    LongEnough,
    NoCode,
    NoDuplicate,
    NotRepetitive,
)

PREFIX = 5  # tokens that are screened before a text is written: the first, and four by greedy choice (the paper)
FILTERS = ("language", "repetition", "code", "duplicates", "likelihood")


def wrong_filters(names: Sequence[str]) -> str | None:
    """The message for an unknown name of a filter; None if all are known."""
    unknown = [name for name in names if name not in FILTERS]
    return f"expected some of {', '.join(FILTERS)}, got {unknown[0]}" if unknown else None


@final
class Generation(BaseModel):
    """How texts are generated: the settings of the paper's procedure, and the filters of its texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    length: int = Field(2048, gt=PREFIX)  # the most tokens of a text, without BOS
    least: int = Field(PREFIX + 1, gt=PREFIX)  # the least tokens of a text
    temperature: float = Field(1.0, gt=0)
    top_p: float | None = Field(None, gt=0, lt=1)
    top_k: int | None = Field(None, ge=1)
    language: str = "en"  # an ISO 639 code, or any
    filters: tuple[str, ...] = FILTERS
    seed: int = Field(0, ge=0, lt=2**63)
    batch_size: int = Field(64, ge=1, lt=2**31)  # texts written at a time, about; twice as many prefixes are begun

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.least > self.length:
            raise ValueError(f"least {self.least} is more than length {self.length}")
        if wrong := wrong_filters(self.filters):
            raise ValueError(f"filters: {wrong}")
        return self

    @property
    def choice(self) -> Choice:
        return Choice(self.temperature, self.top_k, self.top_p)

    def build_filters(self) -> list[Filter]:
        """The filters in the order in which they judge, cheap ones first."""
        kinds: dict[str, Callable[[], Filter]] = {
            "language": partial(InLanguage, self.language),
            "repetition": NotRepetitive,
            "code": NoCode,
            "duplicates": NoDuplicate,
            "likelihood": Likely,
        }
        return [LongEnough(self.least), *(kinds[name]() for name in FILTERS if name in self.filters)]

    def key(self, *more: str) -> str:
        """A short name for these settings and whatever else determines the texts: the start of a SHA-256."""
        content = json.dumps([self.model_dump(mode="json"), *more], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def generation(content: Mapping[str, Any]) -> Generation:
    """Validate settings; raises `InputError` that names the flag."""
    try:
        return Generation.model_validate({key: value for key, value in content.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        flag = f"--{place.replace('_', '-')} {problem['input']}: " if place else ""
        off = " Leave it out to draw from all tokens." if place in ("top_p", "top_k") else ""
        raise InputError(f"{flag}{said[0].lower() + said[1:]}.{off}") from None
