"""The durable record of what is done: a run's working folder, from which it resumes after any interruption.

DIR/.reprune holds what a finished result does not need:

    run.json               the job: recipe, model folder and SHA-256 of its files, versions
    samples.safetensors    the token ids of all samples
    ledger.jsonl           one line per finished window, appended when all its files are on disk
    allocation.json        the sparsity of each block, if it is not uniform
    open-N.safetensors     the float32 weights and masks of the blocks that window N left open
    staged/                blocks that were fitted once more, which replace their shards once that is in the ledger
    streams/               scratch, never read by another process

A window is finished when its line is in the ledger. Streams are not kept: they follow from the embedded samples and
the retired blocks, and are replayed when a run is resumed.

A run resumes only from files that are as they were written. run.json and each line carry a SHA-256 of their own
content, which for a line covers the seal of the line before it. They also carry the SHA-256 of the files that belong
to them: the samples, retired blocks and open blocks.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from reprune.engine.names import FOLDER
from reprune.errors import InputError
from reprune.files.durable import (
    append_line,
    own,
    read_tensors,
    sha256,
    sync_folder,
    whole_lines,
    write_tensors,
    write_text,
)
from reprune.files.local import quoted_command
from reprune.files.lock import is_held, locked
from reprune.files.readable import is_there
from reprune.files.sealed import seal, unseal

if TYPE_CHECKING:  # `reprune status` need not wait for PyTorch
    from torch import Tensor

ALLOCATION = "allocation.json"
_STAGED = "staged"
_JOB: dict[str, type] = dict.fromkeys(("recipe", "weights", "versions", "data", "sketch", "files"), dict)
_JOB |= {"folder": str, "fingerprint": str, "windows": int}
_SHARD = re.compile(r"[\w-]+\.safetensors")  # a bare file name: shards are moved between folders
_LINE = {"window": dict, "blocks": list, "files": dict, "open": dict}


@final
class Ledger:
    """The working folder of one run. A context manager: only one process at a time can enter the same folder."""

    def __init__(self, result: Path, begun: bool = False) -> None:
        """
        Args:
            result: the folder that the run writes.
            begun: whether to resume a run that has begun there.
        """
        self.result = result
        self._begun = begun
        self.folder = result / FOLDER
        self._held = ExitStack()

    def staging_folder(self) -> Path:
        """The folder for blocks that were fitted once more; created if it does not exist."""
        folder = self.folder / _STAGED
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def exists(self) -> bool:
        """Whether a run has begun and is not finished; raises `InputError` if the folder cannot be read."""
        return is_there(self.folder / "run.json", str(self.result))

    @property
    def running(self) -> bool:
        """Whether a process is working on an unfinished run; raises as `exists` does."""
        return self.exists and is_held(self.folder)

    @property
    def way_on(self) -> str:
        """For messages about an unfinished run: what the folder holds, and what to do about it."""
        if self.running:
            return "holds a run that another process is working on; wait for it"
        return f"holds an unfinished run; go on with {quoted_command('reprune', 'resume', str(self.result))}"

    @property
    def never_began(self) -> bool:
        """Whether the result's folder holds nothing but a working folder in which no run has begun."""
        return [path.name for path in self.result.iterdir()] == [FOLDER] and not self.exists

    def check_links(self) -> None:
        """Raise `InputError` if a run would write to, or remove, the target of a link.

        Links to files in the result's folder are allowed: a new file replaces the link itself.
        """
        for path in (*self.result.glob("*"), *self.folder.glob("*")):
            if path.is_symlink() and (path.parent == self.folder or not path.is_file()):
                raise InputError(
                    f"{path}: is a link to {path.readlink()}; a run keeps and removes its files in its own folder: "
                    "remove the link."
                )

    def begin(self, job: Mapping[str, Any], calibration: Tensor, heldout: Tensor) -> None:
        """Fill the working folder of a new run, which must have been entered; run.json is written last."""
        for path in self.folder.iterdir():  # leftovers of a run without run.json, useless without it
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        samples = self.folder / "samples.safetensors"
        write_tensors(samples, {"calibration": calibration, "heldout": heldout})
        write_text(self.folder / "run.json", seal({**job, "files": {samples.name: sha256(samples)}}, indent=2))

    def __enter__(self) -> Self:
        """Lock the working folder; for a new run, create it if it does not exist.

        Raises:
            InputError: another process is working on the run, or has finished it; or as `check_links`.
        """
        self.check_links()
        if not self._begun:
            self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with suppress(FileNotFoundError) if self._begun else nullcontext():
                held.enter_context(locked(self.folder, self.result, "run"))
            if self._begun and not self.exists:
                raise InputError(f"{self.result}: this run is finished; there is nothing to resume.")
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def job(self) -> dict[str, Any]:
        """The job that `begin` was given; raises `InputError` if there is no run or its file is damaged."""
        try:
            job, _ = unseal((self.folder / "run.json").read_text(encoding="utf-8"), indent=2)
            _require(job, _JOB)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{self.result}: holds no unfinished run of reprune.") from None
        except (OSError, ValueError, TypeError) as error:
            raise self.damaged_job(str(error)) from None
        return job

    def damaged_job(self, why: str) -> InputError:
        """The error to raise if the job in run.json cannot be resumed, for this reason."""
        return _damaged(self.folder / "run.json", why)

    def keep_allocation(self, shares: Sequence[float]) -> None:
        """Store the sparsities of all blocks, durably."""
        write_text(self.folder / ALLOCATION, seal({"sparsities": list(shares)}))

    def allocation(self) -> list[float] | None:
        """The sparsities of all blocks, or None if none are stored; raises `InputError` if their file is damaged."""
        path = self.folder / ALLOCATION
        try:
            content, _ = unseal(path.read_text(encoding="utf-8"))
            return [float(share) for share in content["sparsities"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(path, str(error)) from None

    def samples(self) -> dict[str, Tensor]:
        """The token ids of all samples, `calibration` and `heldout`."""
        path = self.folder / "samples.safetensors"
        _check(path, self.job()["files"][path.name])
        return read_tensors(path)

    def lines(self) -> list[dict[str, Any]]:
        """The finished windows, in order. A line that a crash cut short is left out: its window is not finished."""
        return self._read()[0]

    def _read(self) -> tuple[list[dict[str, Any]], str]:
        """The finished windows, and the seal of the last line."""
        path = self.folder / "ledger.jsonl"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return [], ""
        done, last = [], ""
        for number, line in enumerate(content.split(b"\n")[:-1]):  # what follows the last newline was cut short
            try:
                entry, last = unseal(line.decode(), after=last)
                _require(entry, _LINE)
                if entry["window"].get("index") != number:
                    raise ValueError(f"window {number} was expected")
                if strange := [name for name in (*entry["files"], *entry["open"]) if not _SHARD.fullmatch(name)]:
                    raise ValueError(f"{min(strange)!r} is not a file of weights")
            except ValueError as error:
                raise _damaged(path, f"line {number + 1}: {error}") from None
            done.append(entry)
        return done, last

    def check(self) -> None:
        """Raise `InputError` unless all files that finished windows left are as they were written."""
        lines = self.lines()
        staged = _staged_by(lines)
        for name, expected in {name: digest for line in lines for name, digest in line["files"].items()}.items():
            waiting = self.folder / _STAGED / name
            _check(waiting if name in staged and waiting.exists() else self.result / name, expected)
        for name, expected in lines[-1]["open"].items() if lines else ():
            _check(self.folder / name, expected)

    def settle(self) -> None:
        """Move blocks that were fitted once more over their shards; call this when all windows are finished."""
        if not (self.folder / _STAGED).exists():
            return
        for name in _staged_by(self.lines()):
            if (waiting := self.folder / _STAGED / name).exists():
                waiting.replace(self.result / name)
        sync_folder(self.result)

    def commit(
        self,
        window: int,
        entry: Mapping[str, Any],
        written: Mapping[str, str],
        still_open: Mapping[str, Tensor],
    ) -> None:
        """Record a window as finished, and store the blocks that the next window continues with.

        Args:
            window: its number.
            entry: its record.
            written: the SHA-256 of its retired blocks' files, by name in the result; the files are on disk.
            still_open: the tensors of the blocks that it leaves open, by name.
        """
        open_file = self._open_file(window)
        if still_open:
            write_tensors(open_file, still_open)
        path = self.folder / "ledger.jsonl"
        if path.exists():
            own(path)
            whole_lines(path)  # drops a line cut short, so that this one begins on a new line
        left = {open_file.name: sha256(open_file)} if still_open else {}
        line = seal({**entry, "files": dict(written), "open": left}, after=self._read()[1])
        append_line(path, line)
        for file in self.folder.glob("open-*.safetensors"):
            if file != open_file:
                file.unlink()

    def _open_file(self, window: int) -> Path:
        return self.folder / f"open-{window:05d}.safetensors"

    def open_tensors(self) -> dict[str, Tensor]:
        """The tensors of the blocks that the last finished window left open, by name."""
        path = self._open_file(len(self.lines()) - 1)
        return read_tensors(path) if path.exists() else {}

    def clear(self) -> None:
        """Remove the working folder of a finished run. run.json goes first: without it there is no unfinished run.

        The result is complete by now, so errors of the disk are ignored.
        """
        with suppress(OSError):
            (self.folder / "run.json").unlink()
            sync_folder(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def _staged_by(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """The files of the last line and their SHA-256, if they were staged."""
    return lines[-1]["files"] if lines and lines[-1]["window"].get("distilled") else {}


def _require(content: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Raise `ValueError` unless each key has a value of its type."""
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{key} is missing, or of the wrong type")


def _check(path: Path, expected: str) -> None:
    """Raise `InputError` unless a file has this SHA-256."""
    try:
        found = sha256(path)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    if found != expected:
        raise _damaged(path, "it has changed since it was written: its SHA-256 differs")


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged ({' '.join(why.split()):.150}); start the run again in another folder.")
