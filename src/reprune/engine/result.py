"""The result: an ordinary model folder, written shard by shard. Knows nothing of how its weights came about.

Each block is a shard of its own, written once when the block retires. Weights outside the blocks are copied from
the input, in shards of bounded size. The index comes last, so that an unfinished folder does not load.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file
from torch import Tensor

from reprune.errors import InputError
from reprune.model.decoder import Decoder
from reprune.model.durable import write_durably, write_tensors, write_text

RECORD = "reprune.json"
RECIPE = "recipe.yaml"
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*", "*TERMS*")
_NOT_COPIED = ("*.index.json", RECORD)
_SHARD_BYTES = 2**28  # of tensors outside the blocks: a shard is in memory while it is written


@final
class Result:
    """The folder that a run writes."""

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self.folder = folder
        self._decoder = decoder
        self._outside = self._plan_outside()
        self._shards = len(decoder) + len(self._outside)

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

    def write_block(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a block's shard, durably."""
        write_tensors(self._shard(index), tensors)

    def read_block(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block that was written before."""
        try:
            return load_file(self._shard(index))
        except Exception as error:
            raise InputError(f"{self._shard(index)}: cannot be read ({error}); start the run again.") from None

    def write_outside(self) -> None:
        """Write the weights outside the blocks, as they were."""
        for number, names in enumerate(self._outside, len(self._decoder)):
            write_tensors(self._shard(number), {name: self._decoder.checkpoint.tensor(name) for name in names})

    def finish(self, record: Mapping[str, Any], recipe: str) -> None:
        """Write all but the weights: configuration, tokenizer, recipe, record and index."""
        checkpoint = self._decoder.checkpoint
        files = {
            name: self._shard(block).name
            for name in checkpoint.entries
            if (block := self._decoder.block_of(name)) is not None
        }
        for number, names in enumerate(self._outside, len(self._decoder)):
            files |= dict.fromkeys(names, self._shard(number).name)
        for source in sorted({file for pattern in _COPIED for file in self._decoder.folder.glob(pattern)}):
            if source.is_file() and not any(source.match(pattern) for pattern in _NOT_COPIED):
                write_durably(self.folder / source.name, partial(shutil.copyfile, source))
        write_text(self.folder / RECIPE, recipe)
        write_text(self.folder / RECORD, json.dumps(record, indent=2) + "\n")
        index = {"metadata": {"total_size": checkpoint.bytes}, "weight_map": dict(sorted(files.items()))}
        write_text(self.folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
