"""Hidden states of all samples at one point of the model, in memory or in a file. Knows nothing of models."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import final

import torch
from torch import Tensor


@final
class Stream:
    """Hidden states (samples, tokens, hidden), float32, addressed by sample."""

    def __init__(self, states: Tensor, file: Path | None) -> None:
        self._states = states
        self._file = file

    def read(self, samples: slice | Tensor) -> Tensor:
        """The states of some samples, (batch, tokens, hidden), float32, on the CPU."""
        return self._states[samples]

    def write(self, samples: slice, states: Tensor) -> None:
        """Set the states of some samples."""
        self._states[samples] = states.detach().to(self._states)

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, tokens, hidden)."""
        return tuple(self._states.shape)

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def close(self) -> None:
        """Give its memory or its file back; the stream must not be used after."""
        self._states = torch.empty(0)
        if self._file is not None:
            self._file.unlink(missing_ok=True)


@final
class StreamStore:
    """Makes streams of one shape, in memory as long as the budget lasts, then in files of a folder."""

    def __init__(self, shape: tuple[int, int, int], memory_bytes: int, folder: Path) -> None:
        """
        Args:
            shape: (samples, tokens, hidden) of every stream.
            memory_bytes: what all streams in memory may take together.
            folder: where the files of the others go; made when first needed.
        """
        self.shape = shape
        self.bytes = 4 * math.prod(shape)
        self._left = memory_bytes
        self._folder = folder

    def new(self) -> Stream:
        """A stream whose states are not yet set."""
        if self.bytes <= self._left:
            self._left -= self.bytes
            return Stream(torch.empty(self.shape), None)
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".stream", delete=False) as file:
            path = Path(file.name)
        states = torch.from_file(str(path), shared=True, size=math.prod(self.shape), dtype=torch.float32)
        return Stream(states.view(self.shape), path)

    def free(self, stream: Stream) -> None:
        """Close a stream and take its memory back into the budget."""
        if not stream.on_disk:
            self._left += self.bytes
        stream.close()
