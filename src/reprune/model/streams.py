"""Hidden states of all samples at one point of the model, in memory or in a file. Knows nothing of models."""

from __future__ import annotations

import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Self, TypeVar, final

import torch
from torch import Tensor

from reprune.model.full_speed import lasting

_CPU = torch.device("cpu")
AHEAD = 2
"""How many reads of a stream may be queued on a GPU before this process waits: a step reads inputs and targets."""
Given = TypeVar("Given")
Made = TypeVar("Made")
Shape = tuple[int, ...]
"""(samples, tokens, hidden); in some models (samples, tokens, parallel states of a token, hidden)."""


def stream_bytes(shape: Shape) -> int:
    """The bytes of a stream of that shape, in memory or on disk."""
    return 4 * math.prod(shape)


@final
class Stream:
    """Hidden states (samples, tokens, hidden), float32, addressed by sample."""

    def __init__(self, shape: Shape, file: Path | None) -> None:
        self.shape = shape
        self.bytes = stream_bytes(shape)
        self._file = file
        self._at_hand = lasting(shape) if file is None else None

    @property
    def _states(self) -> Tensor:
        if self._at_hand is None:  # the file is not mapped at present
            size = math.prod(self.shape)
            mapped = torch.from_file(str(self._file), shared=True, size=size, dtype=torch.float32)
            self._at_hand = mapped.view(self.shape)
        return self._at_hand

    def read(self, samples: slice | Tensor, device: torch.device = _CPU) -> Tensor:
        """The states of some samples, (batch, tokens, hidden), float32, on a device (see `sent`)."""
        return sent(self._states, samples, device)

    def write(self, samples: slice, states: Tensor) -> None:
        """Set the states of some samples. Those of a GPU come by pinned memory: into other memory they come slowly."""
        states = states.detach()
        if states.device.type == "cuda":
            states = torch.empty(states.shape, pin_memory=True).copy_(states)
        self._states[samples] = states  # one copy, from any dtype

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def rest(self) -> None:
        """Unmap its file, if it has one, until it is used again, so that its pages leave this process's memory."""
        if self._file is not None:
            self._at_hand = None

    def close(self) -> None:
        """Free its memory, or delete its file; the stream must not be used afterwards."""
        self._at_hand = torch.empty(0)
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def sent(values: Tensor, samples: slice | Tensor, device: torch.device) -> Tensor:
    """The rows of some samples, of a tensor on the CPU, on a device.

    For a GPU they are gathered in pinned memory, so that they are sent while the GPU computes; this returns before
    they have arrived. PyTorch reuses that memory once the copy has finished.
    """
    if device.type != "cuda":
        return values[samples].to(device)
    wanted = torch.arange(len(values))[samples]
    gathered = torch.empty((len(wanted), *values.shape[1:]), dtype=values.dtype, pin_memory=True)
    torch.index_select(values, 0, wanted, out=gathered)
    number = torch.cuda.current_device() if device.index is None else device.index
    return _sender(torch.device(device.type, number))(gathered)


def pass_on(
    batches: Sequence[slice],
    read: Callable[[slice], Given],
    run: Callable[[Given, slice], Made],
    write: Callable[[slice, Made], None],
) -> None:
    """Read each batch of samples, run it, and write what is made of it; a batch may be written where it was read.

    A batch is read before what is made of the one before it is written: writing waits for a GPU, which then has its
    next states at hand.
    """
    given = map(read, batches)
    following = next(given, None)
    for batch in batches:
        assert following is not None
        made = run(following, batch)
        following = next(given, None)
        write(batch, made)
        del made  # so that the next batch can have its memory


@final
class _Sender:
    """Sends states to a GPU while it computes; not far ahead, as those that it has not yet used take its memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # beside the computations, so that they do not delay copies
        self._marks: deque[torch.cuda.Event] = deque()  # where the last states were sent, among the computations

    def __call__(self, states: Tensor) -> Tensor:
        """The states, in pinned memory, on the device; returns before they have arrived."""
        if len(self._marks) == AHEAD:
            self._marks.popleft().synchronize()
        with torch.cuda.stream(self._copies):
            sent = states.to(self._device, non_blocking=True)
        computations = torch.cuda.current_stream(self._device)
        computations.wait_stream(self._copies)  # those to come; this process does not wait
        sent.record_stream(computations)  # so that their memory is not reused before
        self._marks.append(computations.record_event())
        return sent


_sender = cache(_Sender)


@final
class StreamStore:
    """Makes streams in memory up to a budget, then in files of a folder; as a context it closes them at its end."""

    def __init__(self, memory_bytes: int, folder: Path) -> None:
        """
        Args:
            memory_bytes: the most bytes of all streams in memory together.
            folder: for the files of the other streams; made when first needed.
        """
        self._left = memory_bytes
        self._folder = folder
        self._streams: list[Stream] = []

    def has_memory_for(self, shape: Shape) -> bool:
        """Whether a stream of that shape would be in memory."""
        return stream_bytes(shape) <= self._left

    def new(self, shape: Shape) -> Stream:
        """A stream whose states are not yet set.

        Raises:
            OSError: the disk has no room for its file.
        """
        stream = Stream(shape, None if self.has_memory_for(shape) else self._new_file(stream_bytes(shape)))
        if not stream.on_disk:
            self._left -= stream.bytes
        self._streams.append(stream)
        return stream

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor whose values are not yet set, for as long as it is used; its memory counts until the store's end.

        Raises:
            OSError: as `new`.
        """
        size = math.prod(shape)
        if size * dtype.itemsize <= self._left:
            self._left -= size * dtype.itemsize
            return torch.empty(shape, dtype=dtype)
        file = self._new_file(size * dtype.itemsize)
        mapped = torch.from_file(str(file), shared=True, size=size, dtype=dtype).view(shape)
        file.unlink()  # its data lasts as long as it is mapped
        return mapped

    def _new_file(self, size: int) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".stream", delete=False) as file:
            path = Path(file.name)
            try:  # a full disk raises here, not as a fault when a page is written
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                path.unlink()
                raise OSError(error.errno, error.strerror, str(path)) from None
        return path

    def free(self, stream: Stream) -> None:
        """Close a stream and return its memory to the budget."""
        self._streams = [one for one in self._streams if one is not stream]
        if not stream.on_disk:
            self._left += stream.bytes
        stream.close()

    def close(self) -> None:
        """Close all streams; their files are deleted, even if something still refers to a stream."""
        for stream in self._streams:
            self.free(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
