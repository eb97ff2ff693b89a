"""What is done, durably: a run's working folder, from which it goes on after any interruption.

DIR/.reprune holds what a finished result does not need:

    run.json               the job: recipe, model folder and fingerprint, versions
    samples.safetensors    the token ids of all samples
    ledger.jsonl           one line a finished window, appended when all its files are on disk
    open-N.safetensors     the float32 weights and masks of the blocks that window N left open
    streams/               scratch, never read by another process

A window is finished when its line is in the ledger. Streams are not kept: they follow from the embedded samples and
the retired blocks, and are replayed when a run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import torch
from safetensors.torch import load_file
from torch import Tensor

from reprune.engine.window import PrunedBlock
from reprune.errors import InputError
from reprune.model.decoder import Decoder
from reprune.model.durable import append_line, write_tensors, write_text
from reprune.model.lock import locked
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window

FOLDER = ".reprune"
_JOB_KEYS = {"recipe", "folder", "fingerprint", "versions", "windows", "data"}


@final
class Ledger:
    """The working folder of one run. Use it as a context: a second process cannot enter the same one."""

    def __init__(self, result: Path) -> None:
        self.result = result
        self.folder = result / FOLDER
        self._held = ExitStack()

    @property
    def exists(self) -> bool:
        return (self.folder / "run.json").exists()

    def begin(self, job: Mapping[str, Any], calibration: Tensor, heldout: Tensor) -> None:
        """Make the working folder of a new run; run.json is written last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.folder / "samples.safetensors", {"calibration": calibration, "heldout": heldout})
        write_text(self.folder / "run.json", json.dumps(job, indent=2))

    def __enter__(self) -> Self:
        """Lock the working folder."""
        self._held.enter_context(locked(self.folder, self.result, "run"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def job(self) -> dict[str, Any]:
        """What `begin` was given; raises `InputError` where there is no run or its file is damaged."""
        try:
            job = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            if missing := _JOB_KEYS - set(job):
                raise ValueError(f"{min(missing)} is missing")
            Recipe.model_validate(job["recipe"])
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{self.result}: holds no unfinished run of reprune.") from None
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.folder / 'run.json'}: damaged ({reason:.100}); start the run again.") from None
        return dict(job)

    def samples(self) -> tuple[Tensor, Tensor]:
        """The token ids of the calibration and of the held-out samples."""
        tensors = load_file(self.folder / "samples.safetensors")
        return tensors["calibration"], tensors["heldout"]

    def lines(self) -> list[dict[str, Any]]:
        """The finished windows, in order. A line that a crash cut short is left out, as its window is not finished."""
        try:
            text = (self.folder / "ledger.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        done = []
        for number, line in enumerate(text.splitlines(keepends=True)):
            try:
                if not line.endswith("\n"):
                    break
                entry = json.loads(line)
                if entry["window"]["index"] != number:
                    raise ValueError(f"window {number} was expected")
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.folder / 'ledger.jsonl'}: line {number + 1} is damaged ({error}); start the run again."
                ) from None
            done.append(entry)
        return done

    def remaining(self, schedule: Sequence[Window]) -> list[Window]:
        """The windows that are not finished."""
        return list(schedule[len(self.lines()) :])

    def commit(self, window: Window, entry: Mapping[str, Any], still_open: Sequence[PrunedBlock]) -> None:
        """Make a window finished; its retired blocks are on disk already."""
        if still_open:
            tensors: dict[str, Tensor] = {}
            for pruned in still_open:
                for name, tensor in pruned.block.module.state_dict().items():
                    tensors[f"{pruned.index}/weight/{name}"] = tensor
                for name, mask in pruned.masks.items():
                    tensors[f"{pruned.index}/mask/{name}"] = mask
            write_tensors(self._open_file(window.index), tensors)
        self._mend()
        append_line(self.folder / "ledger.jsonl", json.dumps(entry))
        for file in self.folder.glob("open-*.safetensors"):
            if file != self._open_file(window.index):
                file.unlink()

    def _mend(self) -> None:
        """Cut off a line that a crash left without its end, so that the next begins on a line of its own."""
        path = self.folder / "ledger.jsonl"
        if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
                os.fsync(file.fileno())

    def _open_file(self, window: int) -> Path:
        return self.folder / f"open-{window:05d}.safetensors"

    def open_blocks(self, decoder: Decoder) -> list[PrunedBlock]:
        """The blocks that the last finished window left open, as they were in memory."""
        path = self._open_file(len(self.lines()) - 1)
        if not path.exists():
            return []
        tensors = load_file(path)
        blocks = []
        for index in sorted({int(name.split("/", 1)[0]) for name in tensors}):
            pruned = PrunedBlock(decoder.load(index))
            state = pruned.block.module.state_dict()
            for key, tensor in tensors.items():
                number, kind, name = key.split("/", 2)
                if int(number) != index:
                    continue
                if kind == "mask":
                    pruned.masks[name] = tensor.to(decoder.device)
                else:
                    with torch.no_grad():
                        state[name].copy_(tensor)
            blocks.append(pruned)
        return blocks

    def clear(self) -> None:
        """Remove the working folder of a finished run."""
        shutil.rmtree(self.folder)
