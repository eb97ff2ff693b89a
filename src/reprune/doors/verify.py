"""Checks that a result is what its record says: files, sparsity and pattern, numbers, and a forward pass.

The forward pass is that of plain Transformers, which knows nothing of reprune.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from reprune.doors.formats import sparsities
from reprune.doors.status import what_is_there
from reprune.engine.ledger import Ledger
from reprune.engine.names import RECORD
from reprune.engine.probe import TOKENS, Probe, rms
from reprune.errors import InputError, out_of_memory, short
from reprune.files.durable import sha256
from reprune.files.local import local_path
from reprune.files.wellformed import read_json
from reprune.math.patterns import Pattern, parse_pattern
from reprune.model.bare import model_class, read_config
from reprune.model.block import Enough
from reprune.model.decoder import Decoder
from reprune.model.locate import locate_model
from reprune.model.plain_kernels import NOTHING_DOWNLOADED, plain_kernels
from reprune.model.quiet import quiet_transformers
from reprune.model.uncached import uncached
from reprune.model.undisturbed import undisturbed

TOLERANCE = 0.05
"""The largest relative difference in the states of the forward pass; products in bfloat16 cause about 0.01."""

_SENT_ELSEWHERE = 8
"""In a mixture, one in this many tokens may differ more: rounding may send it to another expert that is as good."""

_Count = Annotated[int, Field(ge=0, lt=2**63)]  # of a tensor: 64 bits


class _Read(BaseModel):
    model_config = ConfigDict(strict=True)


class _Matrix(_Read):
    name: str
    rows: _Count
    columns: _Count
    zeros: _Count
    pattern: str | None = None  # if it is not the recipe's


class _Block(_Read):
    index: _Count
    matrices: list[_Matrix]


class _Forward(_Read):
    ids: list[_Count] = Field(max_length=TOKENS)
    rms: list[float]
    tokens: _Count


class _Record(_Read):
    """The parts of a record that a result is verified against."""

    recipe: dict[str, Any]
    blocks: list[_Block] = Field(min_length=1)
    files: dict[str, str]
    forward: _Forward


@final
@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    found: str  # in words
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


@final
@dataclass(frozen=True)
class Verification:
    """The outcome of all checks."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def __bool__(self) -> bool:
        """Whether all checks passed, so that `assert verify(out)` means what it says."""
        return self.passed

    def record(self) -> dict[str, Any]:
        """All fields, for JSON."""
        checks = [asdict(check) | {"problems": list(check.problems), "passed": check.passed} for check in self.checks]
        return {"passed": self.passed, "checks": checks}


@undisturbed()
def verify(
    out: str | os.PathLike[str],
    *,
    trust_remote_code: bool = False,
    notify: Callable[[Check], None] = lambda _: None,
) -> Verification:
    """Check a finished result against its record.

    Args:
        out: the folder that `prune` wrote.
        trust_remote_code: let Transformers run Python code that comes with the model.
        notify: called with each check as it is done.

    Returns:
        The outcome of four checks: every file is there and as it was written; each matrix has the zeros on record, in
        a mask that the pattern allows; no weight is NaN or infinite; plain Transformers loads the model, and its last
        block outputs the states on record, within 5 %. If the files fail, the other checks are left out.

    Raises:
        InputError: there is no finished result, its record is not valid, or the folder holds no model.
    """
    folder = local_path(out, "out")
    record = _read(folder)
    checks: list[Check] = []
    for check in _checks(folder, record, trust_remote_code):
        checks.append(check)
        notify(check)
    return Verification(tuple(checks))


def _checks(folder: Path, record: _Record, trust_remote_code: bool) -> Iterator[Check]:
    files = _files(folder, record.files)
    yield files
    if not files.passed:
        return
    locate_model(os.fspath(folder))
    decoder = Decoder(folder, trust_remote_code=trust_remote_code)
    yield _weights(decoder, record)
    yield _numbers(decoder)
    yield _forward(decoder, record.forward, trust_remote_code)


def _read(folder: Path) -> _Record:
    file = folder / RECORD
    if (ledger := Ledger(folder)).exists:
        raise InputError(f"{folder}: {ledger.way_on}, then verify it.")
    try:
        content = read_json(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("what it holds is no run's")
        if missing := _Record.model_fields.keys() - set(content):
            raise ValueError(f"it holds no {min(missing)!r}")
        record = _Record.model_validate(content)
        parse_pattern(str(record.recipe["sparsity"]))
    except (FileNotFoundError, NotADirectoryError):
        said = what_is_there(folder) or f"holds no result of reprune ({RECORD} is not in it)"
        raise InputError(f"{folder}: {said}.") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check its permissions.") from None
    except (ValueError, KeyError) as error:
        said = f"it holds no {error}" if isinstance(error, KeyError) else str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        reason = " ".join(said.split())
        raise InputError(f"{file}: not a record to verify by ({reason:.100}); prune the model again.") from None
    return record


def _files(folder: Path, expected: dict[str, str]) -> Check:
    problems = []
    for name, digest in expected.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{name}: lies outside the folder")
        elif not _is_file(path):
            problems.append(f"{name:.200}: is missing")
        elif sha256(path) != digest:
            problems.append(f"{name}: has changed since it was written")
    beside = {path.name for path in folder.glob("*.safetensors")} - set(expected)
    problems += [f"{name}: is not one of the result's files" for name in sorted(beside)]
    return Check("files", f"{len(expected)} files, their SHA-256", tuple(problems))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long, or not valid
        return False


def _weights(decoder: Decoder, record: _Record) -> Check:
    """Zeros and patterns, matrix by matrix."""
    indices = {block.index for block in record.blocks}
    problems = [f"block {index}: is not on record" for index in sorted(set(range(len(decoder))) - indices)]
    problems += [f"block {index}: is not in the model" for index in sorted(indices - set(range(len(decoder))))]
    count = zeros = weights = 0
    for block in record.blocks:
        if block.index >= len(decoder):
            continue
        matrices = {linear.name: linear.matrix() for linear in decoder.load(block.index).linears}
        for entry in block.matrices:
            count += 1
            pattern = parse_pattern(entry.pattern or str(record.recipe["sparsity"]))
            problems += _matrix(f"block {block.index}, {entry.name}", matrices.get(entry.name), entry, pattern)
            zeros += entry.zeros
            weights += entry.rows * entry.columns
    found = f"{count} matrices, {zeros / max(weights, 1):.2%} zeros, pattern {sparsities(record.recipe)}"
    return Check("sparsity", found, tuple(problems))


def _matrix(place: str, matrix: Tensor | None, entry: _Matrix, pattern: Pattern) -> Iterator[str]:
    if matrix is None:
        yield f"{place}: is not in the model"
    elif tuple(matrix.shape) != (entry.rows, entry.columns):
        yield f"{place}: is {tuple(matrix.shape)}, on record {entry.rows} x {entry.columns}"
    elif (zeros := int((matrix == 0).sum())) != entry.zeros:
        yield f"{place}: has {zeros} zeros, on record {entry.zeros}"
    elif not pattern.allows(matrix != 0):
        yield f"{place}: does not have the pattern {pattern}"


def _numbers(decoder: Decoder) -> Check:
    problems = tuple(f"{name}: holds NaN or infinite values" for name in decoder.not_finite())
    return Check("numbers", f"{len(decoder.used)} tensors, finite", problems)


def _forward(decoder: Decoder, expected: _Forward, trust_remote_code: bool) -> Check:
    wanted = torch.tensor(expected.rms)
    try:
        found = torch.tensor(rms(_last_states(decoder, expected, trust_remote_code)))
    except Exception as error:  # the library raises nearly anything on a model that it cannot run
        if out_of_memory(error) is not None:  # not a fault of the result
            raise
        return Check("forward", "by Transformers", (short(error),))
    if found.shape != wanted.shape:
        found = torch.full_like(wanted, torch.nan)
    judged, off = f"{len(wanted)}", _off(found, wanted)
    if off > TOLERANCE and any(decoder.load(index).routed for index in range(len(decoder))):
        alike = ((found - wanted).abs() / wanted).argsort()[: len(wanted) - len(wanted) // _SENT_ELSEWHERE]
        judged, off = f"{len(alike)} of {len(wanted)}", _off(found[alike], wanted[alike])
    said = f"by Transformers, states of {judged} tokens {off:.2%} off record"
    return Check(
        "forward", said, () if off <= TOLERANCE else (f"more than the {TOLERANCE:.0%} that rounding explains",)
    )


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def _last_states(decoder: Decoder, expected: _Forward, trust_remote_code: bool) -> Tensor:
    """The last block's output for the tokens on record (tokens, hidden), followed by as many others as on record."""
    seen: list[Tensor] = []
    first = torch.tensor([expected.ids])
    more = Probe(decoder.vocabulary, expected.tokens).ids[:, first.shape[1] :]
    skeleton = decoder.skeleton

    def saw(module: nn.Module, inputs: Any, outputs: Any) -> None:
        del module, inputs
        states = outputs[0] if isinstance(outputs, tuple | list) else outputs
        seen.append(skeleton.forms[-1].states(skeleton.forms[-1].of(states))[0, :TOKENS])
        raise Enough  # before logits are computed for all tokens

    with quiet_transformers():
        kind = model_class(read_config(decoder.folder, trust_remote_code), trust_remote_code)
        model = kind.from_pretrained(
            decoder.folder,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **NOTHING_DOWNLOADED,
        ).eval()
        model.get_submodule(skeleton.blocks_path)[skeleton.running[-1]].register_forward_hook(saw)
        with suppress(Enough), plain_kernels(torch.device("cpu")):
            uncached(model, torch.cat([first, more], 1))
    return seen[0]
