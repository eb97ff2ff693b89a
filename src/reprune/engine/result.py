"""The result: an ordinary model folder, written shard by shard. Knows nothing of how its weights were computed.

Each block is a shard of its own, written once, when the block retires. Weights outside the blocks are copied from the
dense model, in shards of bounded size. The index is written last, so that an unfinished folder does not load.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, final

from torch import Tensor

from reprune.engine.names import INDEX, RECIPE, RECORD
from reprune.errors import InputError, out_of_memory
from reprune.files.durable import read_tensors, sha256, write_durably, write_tensors, write_text
from reprune.files.readable import is_file_there, is_readable
from reprune.files.wellformed import read_json
from reprune.model.checkpoint import NAMES_WEIGHTS
from reprune.model.decoder import Decoder
from reprune.model.locate import BESIDE, LOADED

_COPIED = (*BESIDE, "LICENSE*", "NOTICE*", "USE_POLICY*", "*TERMS*")
_OF_A_TRAINER = ("trainer_state.json", "*_results.json")  # measurements of the dense model, and paths
_NOT_COPIED = ("*.index.*json", RECORD, *_OF_A_TRAINER)
_SHARD_BYTES = 2**28  # for tensors outside the blocks: a shard is in memory while it is written


@final
class Result:
    """The folder that a run writes."""

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self.folder = folder
        self._decoder = decoder
        self._outside = self._plan_outside()
        self._shards = len(decoder) + len(self._outside)

    @property
    def dense(self) -> Path:
        """The folder of the dense model."""
        return self._decoder.folder

    def _plan_outside(self) -> list[list[str]]:
        """The names of the tensors outside the blocks, in shards of at most 256 MiB (or one tensor)."""
        entries = self._decoder.checkpoint.entries
        shards: list[list[str]] = []
        size = 0
        for name in (name for name in entries if self._decoder.block_of(name) is None):
            if not shards or size + entries[name].bytes > _SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += entries[name].bytes
        return shards

    def _shard(self, number: int) -> Path:
        return self.folder / f"model-{number + 1:05d}-of-{self._shards:05d}.safetensors"

    def write_block(self, index: int, tensors: Mapping[str, Tensor], folder: Path | None = None) -> dict[str, str]:
        """Write a block's shard durably, here or to another folder; returns its file's name and SHA-256."""
        path = (folder or self.folder) / self._shard(index).name
        write_tensors(path, tensors)
        return {path.name: sha256(path)}

    def read_block(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block that was written before; raises `InputError` if they cannot be read."""
        try:
            return read_tensors(self._shard(index))
        except Exception as error:
            if out_of_memory(error) is not None:
                raise
            raise InputError(f"{self._shard(index)}: cannot be read ({error}); start the run again.") from None

    def write_outside(self) -> dict[str, str]:
        """Write the weights outside the blocks, unchanged; returns the names of the files and their SHA-256."""
        written = {}
        for number, names in enumerate(self._outside, len(self._decoder)):
            write_tensors(self._shard(number), {name: self._decoder.checkpoint.tensor(name) for name in names})
            written[self._shard(number).name] = sha256(self._shard(number))
        return written

    def _beside(self, others: Collection[str]) -> dict[str, Path]:
        """The files beside the weights that belong to the model, and `others`, by name."""
        folder = self._decoder.folder
        found = sorted({file for pattern in (*_COPIED, *map(glob.escape, others)) for file in folder.glob(pattern)})
        return {
            source.relative_to(folder).as_posix(): source
            for source in found
            if _is_file(source) and not any(source.match(pattern) for pattern in _NOT_COPIED)
        }

    def linked(self, others: Collection[str] = ()) -> tuple[list[str], list[str]]:
        """The files beside the weights that link outside any model's folder: those to copy, and those to leave out.

        Files that the model is loaded from, `others` included, are copied: a store of files, such as DVC's, keeps them
        elsewhere. Any other file may be private and is left out.
        """
        folder = self._decoder.folder.resolve()
        elsewhere = {
            name: source
            for name, source in self._beside(others).items()
            if not _is_of_a_model(Path(os.path.realpath(source)), folder)  # of a link in a circle too
        }
        copied = [name for name, file in elsewhere.items() if name in others or _is_loaded(file)]
        return copied, [name for name in elsewhere if name not in copied]

    def unreadable(self, others: Collection[str] = ()) -> list[str]:
        """The unreadable files beside the weights that the model is not loaded from; they are left out."""
        return [
            name
            for name, source in self._beside(others).items()
            if name not in others and not _is_loaded(source) and not is_readable(source)
        ]

    def finish(
        self, record: Mapping[str, Any], recipe: str, written: Mapping[str, str], others: Collection[str] = ()
    ) -> dict[str, Any]:
        """Write everything except the weights: configuration, tokenizer, recipe, record and index.

        Args:
            record: the contents of reprune.json, without the SHA-256 of the other files, which is added.
            recipe: the contents of recipe.yaml.
            written: the SHA-256 of each file of weights, by name.
            others: more files that the model is loaded from: code, and tokenizer files with names of their own.

        Returns:
            The contents of reprune.json.

        Raises:
            ChangedError: a file of the dense model has changed since it was opened.
        """
        checkpoint = self._decoder.checkpoint
        checkpoint.check_unchanged()
        files = {
            name: self._shard(block).name
            for name in checkpoint.entries
            if (block := self._decoder.block_of(name)) is not None
        }
        for number, names in enumerate(self._outside, len(self._decoder)):
            files |= dict.fromkeys(names, self._shard(number).name)
        files_written = dict(written)
        _, linked = self.linked(others)
        left_out = {*linked, *self.unreadable(others)}
        for name, source in self._beside(others).items():
            if name not in left_out:
                (self.folder / name).parent.mkdir(exist_ok=True)
                write_durably(self.folder / name, partial(_copy, source))
                files_written[name] = sha256(self.folder / name)
        write_text(self.folder / RECIPE, recipe)
        files_written[RECIPE] = sha256(self.folder / RECIPE)
        index = {"metadata": {"total_size": checkpoint.bytes}, "weight_map": dict(sorted(files.items()))}
        text = json.dumps(index, indent=2) + "\n"
        files_written[INDEX] = hashlib.sha256(text.encode()).hexdigest()
        whole = {**record, "files": dict(sorted(files_written.items()))}
        write_text(self.folder / RECORD, json.dumps(whole, indent=2) + "\n")
        write_text(self.folder / INDEX, text)  # last: a folder without it does not load
        return whole


def _is_file(file: Path) -> bool:
    """Whether this is a file, or a link into a folder that is closed, which then counts as an unreadable file."""
    try:
        return is_file_there(file, str(file))
    except InputError:
        return True


def _is_loaded(file: Path) -> bool:
    """Whether the model is loaded from a file of that name."""
    return any(map(file.match, LOADED))


def _is_of_a_model(file: Path, folder: Path) -> bool:
    """Whether a file, its links resolved, lies in this folder, in the Hub's cache, or beside another model."""
    if file.is_relative_to(folder) or (file.parent.name == "blobs" and file.parent.parent.name.startswith("models--")):
        return True
    try:
        return "model_type" in read_json((file.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _copy(source: Path, target: Path) -> None:
    """Copy a file, config.json without the key that names the files of weights, which have other names now."""
    if source.name == "config.json" and NAMES_WEIGHTS in (config := read_json(source.read_text(encoding="utf-8"))):
        rest = {key: value for key, value in config.items() if key != NAMES_WEIGHTS}
        target.write_text(json.dumps(rest, indent=2) + "\n", encoding="utf-8")
    else:
        shutil.copyfile(source, target)
