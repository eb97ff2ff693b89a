"""The processes that do one run together, each with a part of the samples (torch.distributed).

Each of N ranks has every N-th sample, counted from its own number. What is summed over samples is summed over ranks;
what one rank has computed or read, it tells the others. Alone there is one rank, and nothing of this does anything.
Nothing is pickled: values go as JSON, tensors as their bytes.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reprune.errors import InputError, LostRankError
from reprune.math.heartbeat import Heartbeat

Value = TypeVar("Value")

_BUCKET = 2**26  # bytes of small tensors that are summed at once
_HEARING = 2.0  # seconds for all ranks to come to the same error
_LETTING_GO = 0.1  # seconds for threads that await Python's lock, and nothing else


@dataclass
class Traffic:
    """What ranks have exchanged."""

    bytes: int = 0  # that this rank has sent
    seconds: float = 0.0  # that it has spent on it, mostly waiting

    def since(self, before: Traffic) -> Traffic:
        return Traffic(self.bytes - before.bytes, self.seconds - before.seconds)


class Ranks(ABC):
    """All processes of a run, as one of them sees them."""

    number: int
    """This one's."""
    count: int
    traffic: Traffic

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def part(self, samples: int) -> int:
        """How many of so many samples are this rank's."""
        return len(range(self.number, samples, self.count))

    @abstractmethod
    def own(self, samples: Tensor) -> Tensor:
        """Of the numbers of some samples those of this rank's, as it numbers them itself."""

    @abstractmethod
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to its sum over all ranks."""

    @abstractmethod
    def add(self, values: Sequence[float]) -> list[float]:
        """Each number's sum over all ranks, in float64."""

    @abstractmethod
    def copy_(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Set each tensor to what it is on one rank."""

    @abstractmethod
    def tell(self, value: Any, source: int = 0) -> Any:
        """What one rank gives: whatever JSON can hold."""

    def each_tells(self, value: Any) -> list[Any]:
        """What all ranks give, in their order: whatever JSON can hold."""
        return [self.tell(value, source) for source in range(self.count)]

    @abstractmethod
    def wait_for_first(self) -> None:
        """Wait until the first rank gets here, however long that takes, as long as it lives."""

    def first_does(self, work: Callable[[], Value]) -> Value:
        """What the first rank's work gives, which JSON can hold; the others wait, however long it takes.

        Raises:
            InputError: on all ranks, where the work raises it.
        """
        found: Value | None = None
        wrong: InputError | None = None
        if self.first:
            try:
                found = work()
            except InputError as error:
                wrong = error
        self.wait_for_first()
        said, told = self.tell([None if wrong is None else str(wrong), found])
        if said is not None:
            raise wrong or InputError(said)
        return cast("Value", told)

    def tell_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """What the first rank gives, on the CPU; the others give None."""
        if self.alone:
            return dict(tensors or {})
        kinds = [[name, str(one.dtype).removeprefix("torch."), [*one.shape]] for name, one in (tensors or {}).items()]
        told = self.tell(kinds)
        if tensors is None:
            tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, dtype, shape in told}
        found = {name: tensors[name].cpu().contiguous() for name, _, _ in told}
        self.copy_(list(found.values()))
        return found

    def sum_gradients_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum all gradients; where no rank has one there is none."""
        there = self.add([float(parameter.grad is not None) for parameter in parameters])
        having = [parameter for parameter, count in zip(parameters, there, strict=True) if count]
        for parameter in having:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_([parameter.grad for parameter in having if parameter.grad is not None])


@final
class Alone(Ranks):
    """One process."""

    number, count = 0, 1

    def __init__(self) -> None:
        self.traffic = Traffic()

    def own(self, samples: Tensor) -> Tensor:
        return samples

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """They are the sums."""

    def add(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def copy_(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """They are what they are."""

    def tell(self, value: Any, source: int = 0) -> Any:
        return value

    def wait_for_first(self) -> None:
        """It is here."""


@final
class Together(Ranks):
    """Several processes, as a launcher such as torchrun has started them."""

    def __init__(self, timeout: float) -> None:
        """Join the others, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say.

        Args:
            timeout: how many seconds to wait for another rank before it is given up for lost.

        Raises:
            InputError: this PyTorch is built for one process.
            LostRankError: the others cannot be found in that time.
        """
        if not dist.is_available():
            raise InputError(
                f"a run on several processes needs torch.distributed, which PyTorch {torch.__version__} is built "
                "without; start one process, or install a PyTorch that has it."
            )
        from torch.distributed.rendezvous import rendezvous  # which such a PyTorch cannot import

        self.traffic = Traffic()
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            # NCCL refuses processes that share a GPU.
            if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count():
                backend = "cpu:gloo,cuda:nccl"
                # So that a lost rank is an error here, as with gloo, and does not end this process by NCCL's watchdog.
                os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        wait = timedelta(seconds=timeout)
        try:
            self._store, self.number, self.count = next(rendezvous("env://", timeout=wait))
            self._store.set_timeout(wait)
            dist.init_process_group(backend, store=self._store, rank=self.number, world_size=self.count, timeout=wait)
        except (RuntimeError, ValueError) as error:
            raise LostRankError(f"the processes of this run cannot find each other: {_short(error)}") from None
        self._meetings, self._patience = 0, timeout
        self._heart = Heartbeat(self._store)
        if self.first:
            self._heart.begin()

    def close(self) -> None:
        """Leave the others, whatever has become of them."""
        self._heart.end()
        # Threads of gloo let go of tensors under Python's lock. PyTorch 2.6 holds that while it waits for them to end,
        # for ever: so they are to be through with it.
        time.sleep(_LETTING_GO)
        with suppress(RuntimeError):
            dist.destroy_process_group()

    def own(self, samples: Tensor) -> Tensor:
        return samples[samples % self.count == self.number] // self.count

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        bucket: list[Tensor] = []
        size = 0
        for tensor in tensors:
            if tensor.is_contiguous() and tensor.nbytes >= _BUCKET:
                self._sum_(tensor)
                continue
            bucket.append(tensor)
            size += tensor.nbytes
            if size >= _BUCKET:
                self._sum_together_(bucket)
                bucket, size = [], 0
        if bucket:
            self._sum_together_(bucket)

    def _sum_together_(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._sum_(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def _sum_(self, tensor: Tensor) -> None:
        # In a ring each rank sends (count - 1) / count of it twice.
        self._exchange(2 * tensor.nbytes * (self.count - 1) // self.count, lambda: dist.all_reduce(tensor))

    def add(self, values: Sequence[float]) -> list[float]:
        sums = torch.tensor(list(values), dtype=torch.float64)
        self._sum_(sums)
        return [float(value) for value in sums]

    def copy_(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        for tensor in tensors:
            whole = tensor.contiguous()
            if not whole.numel():
                continue
            sent = whole.nbytes if self.number == source else 0
            raw = whole.view(-1).view(torch.uint8)
            self._exchange(sent, partial(dist.broadcast, raw, source))
            if whole is not tensor:
                tensor.copy_(whole)

    def tell(self, value: Any, source: int = 0) -> Any:
        mine = self.number == source
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8) if mine else torch.empty(0)
        length = torch.tensor([len(said)])
        self.copy_([length], source)
        if not mine:
            said = torch.empty(int(length), dtype=torch.uint8)
        self.copy_([said], source)
        return json.loads(said.numpy().tobytes())

    def wait_for_first(self) -> None:
        key = f"reprune/first/{self._meetings}"
        self._meetings += 1
        if self.first:
            self._exchange(0, lambda: self._store.set(key, b"1"))
        else:
            self._exchange(0, lambda: self._heart.wait(key, self._patience))

    def blame(self, message: str) -> bool:
        """Whether this rank is the one to say why all end: the first, or one whose reason is not that of the first."""
        said, heard = "reprune/error", "reprune/heard"
        try:
            if self.first:
                self._store.set(said, message.encode())
                until = time.monotonic() + _HEARING
                while self._store.add(heard, 0) < self.count - 1 and time.monotonic() < until:
                    time.sleep(0.05)  # with the first ends what they find each other by
                return True
            self._store.wait([said], timedelta(seconds=_HEARING))
            same = self._store.get(said) == message.encode()
            self._store.add(heard, 1)
            return not same
        except RuntimeError:  # the first knows of no error
            return True

    def is_first_to_lose(self) -> bool:
        """Whether no other rank has said before that some are lost, as far as can be known."""
        self._heart.end()
        found: list[int] = []

        def ask() -> None:
            with suppress(RuntimeError):
                found.append(int(self._store.add("reprune/lost", 1)))

        # Where the one to ask is lost, nobody answers.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_HEARING)
        return found == [1] if found else self.number <= 1

    def _exchange(self, sent: int, work: Callable[[], Any]) -> None:
        began = time.perf_counter()
        try:
            work()
        except RuntimeError as error:
            raise LostRankError(
                f"process {self.number} of {self.count} has lost the others ({_short(error)}); see which of them ended "
                "and why."
            ) from None
        self.traffic.bytes += sent
        self.traffic.seconds += time.perf_counter() - began


def _short(error: Exception) -> str:
    """What an error of PyTorch's says first, without the place in its source that it stands behind."""
    said = re.sub(r"^\[[^]]*\.cc:\d+\] *", "", " ".join(str(error).split()))
    return re.split(r"\. (?=[A-Z])", said)[0][:150]


ALONE = Alone()
"""Of what runs in one process."""
