"""The processes that do one run together, each with a part of the samples (torch.distributed).

Each of N ranks has every N-th sample, starting from its own number. Sums over samples are summed over ranks; what one
rank has computed or read, it sends to the others. A single process is one rank, and then nothing is exchanged.
Nothing is pickled: values are sent as JSON, tensors as their bytes.
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

from reprune.errors import InputError, LostRankError, out_of_memory
from reprune.math.heartbeat import Heartbeat

Value = TypeVar("Value")

_BUCKET = 2**26  # bytes of small tensors that are summed at once
_HEARING = 2.0  # seconds that ranks wait for each other when one reports an error
_LETTING_GO = 0.1  # seconds for threads that wait for Python's lock and for nothing else
_NO_GPU = "none"
_PART = " MIG "  # in the name of a part of a GPU


@dataclass
class Traffic:
    """What a rank has exchanged with the others."""

    bytes: int = 0  # sent by this rank
    seconds: float = 0.0  # spent on exchanges, mostly waiting

    def since(self, before: Traffic) -> Traffic:
        return Traffic(self.bytes - before.bytes, self.seconds - before.seconds)


class Ranks(ABC):
    """All processes of a run, as seen by one of them."""

    number: int
    """The rank of this process, from 0."""
    count: int
    traffic: Traffic

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.number == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def part(self, samples: int) -> int:
        """How many of `samples` samples are this rank's."""
        return len(range(self.number, samples, self.count))

    @abstractmethod
    def own(self, samples: Tensor) -> Tensor:
        """Select this rank's samples from sample numbers of the run; returns the rank's own numbers of them."""

    @abstractmethod
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to its sum over all ranks."""

    @abstractmethod
    def add(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks, in float64."""

    @abstractmethod
    def copy_(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Set each tensor to its values on the source rank."""

    @abstractmethod
    def tell(self, value: Any, source: int = 0) -> Any:
        """Send the source rank's value to all ranks; returns it on each. JSON must be able to hold it."""

    def each_tells(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of ranks. JSON must be able to hold them."""
        return [self.tell(value, source) for source in range(self.count)]

    @abstractmethod
    def wait_for_first(self) -> None:
        """Wait until the first rank gets here, however long that takes, as long as it lives."""

    def first_does(self, work: Callable[[], Value]) -> Value:
        """Do work on the first rank alone; returns its result, which JSON must be able to hold, on all ranks.

        The other ranks wait, however long it takes.

        Raises:
            InputError: on all ranks, if the work raises it.
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
        """Send the first rank's tensors to all ranks; returns them on the CPU. The other ranks pass None."""
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
        """Sum all gradients over ranks; a parameter that has a gradient on no rank stays without one."""
        there = self.add([float(parameter.grad is not None) for parameter in parameters])
        having = [parameter for parameter, count in zip(parameters, there, strict=True) if count]
        for parameter in having:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_([parameter.grad for parameter in having if parameter.grad is not None])


@final
class Alone(Ranks):
    """A run of one process."""

    number, count = 0, 1

    def __init__(self) -> None:
        self.traffic = Traffic()

    def own(self, samples: Tensor) -> Tensor:
        return samples

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Does nothing: the tensors are the sums."""

    def add(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def copy_(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Does nothing: there is no other rank."""

    def tell(self, value: Any, source: int = 0) -> Any:
        return value

    def wait_for_first(self) -> None:
        """Does nothing: this is the first rank."""


@final
class Together(Ranks):
    """A run of several processes, started by a launcher such as torchrun."""

    _by_nccl = False
    _sent_by_nccl = False  # whether anything was

    def __init__(self, timeout: float) -> None:
        """Join the other processes by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment.

        Args:
            timeout: seconds to wait for another rank before it counts as lost.

        Raises:
            InputError: this PyTorch is built without torch.distributed.
            LostRankError: the other processes are not found within that time.
        """
        if not dist.is_available():
            raise InputError(
                f"a run on several processes needs torch.distributed, which PyTorch {torch.__version__} is built "
                "without; start one process, or install a PyTorch that has it."
            )
        from torch.distributed.rendezvous import rendezvous  # such a PyTorch cannot import it

        self.traffic = Traffic()
        gpu = _own_gpu()
        wait = timedelta(seconds=timeout)
        try:
            self._store, self.number, self.count = next(rendezvous("env://", timeout=wait))
            self._store.set_timeout(wait)
            backend = "gloo"
            if self._have_own_gpus(gpu):  # NCCL refuses processes that share one
                self._by_nccl = True
                backend = "cpu:gloo,cuda:nccl"
                # Makes a lost rank an error here, as with gloo; otherwise NCCL's watchdog ends this process.
                os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
            dist.init_process_group(backend, store=self._store, rank=self.number, world_size=self.count, timeout=wait)
        except (RuntimeError, ValueError) as error:
            raise LostRankError(f"the processes of this run cannot find each other: {_short(error)}") from None
        self._meetings, self._patience = 0, timeout
        self._heart = Heartbeat(self._store)
        if self.first:
            self._heart.begin()

    def _have_own_gpus(self, gpu: str) -> bool:
        """Whether each rank has a GPU that no other has, given this rank's."""
        self._store.set(f"reprune/gpu/{self.number}", gpu.encode())
        found = {self._store.get(f"reprune/gpu/{rank}") for rank in range(self.count)}
        return len(found) == self.count and _NO_GPU.encode() not in found

    def close(self, failed: bool = False) -> None:
        """Leave the process group, even if other processes are lost.

        Once it was used, NCCL lets a process leave when all have nothing more to do, so one that has `failed` ends
        without that.
        """
        self._heart.end()
        # Gloo's threads need Python's lock to release tensors. PyTorch 2.6 holds that lock while it waits for these
        # threads to end, a deadlock. So they get time to release their tensors first.
        time.sleep(_LETTING_GO)
        if failed and self._sent_by_nccl:
            return
        with suppress(RuntimeError):
            dist.destroy_process_group()

    def own(self, samples: Tensor) -> Tensor:
        return samples[samples % self.count == self.number] // self.count

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        bucket: list[Tensor] = []
        size = 0
        begun: list[Callable[[], Any]] = []  # waited for together: by NCCL, each wait ends at a full millisecond
        for tensor in tensors:
            if tensor.is_contiguous() and tensor.nbytes >= _BUCKET:
                begun.append(self._begin_sum(tensor))
                continue
            bucket.append(tensor)
            size += tensor.nbytes
            if size >= _BUCKET:
                self._sum_together_(bucket)
                bucket, size = [], 0
        if bucket:
            self._sum_together_(bucket)
        for wait in begun:
            self._exchange(0, wait)

    def _sum_together_(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._sum_(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def _sum_(self, tensor: Tensor) -> None:
        self._exchange(0, self._begin_sum(tensor))

    def _begin_sum(self, tensor: Tensor) -> Callable[[], Any]:
        """Begin to sum a tensor; returns what waits for the sum."""
        # In a ring, each rank sends (count - 1) / count of the tensor twice.
        return self._begin(dist.all_reduce, tensor, 2 * tensor.nbytes * (self.count - 1) // self.count)

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
            self._exchange(0, self._begin(partial(dist.broadcast, src=source), raw, sent))
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
        """Whether this rank must report why the run ends: the first must, and any whose message is another."""
        said, heard = "reprune/error", "reprune/heard"
        try:
            if self.first:
                self._store.set(said, message.encode())
                until = time.monotonic() + _HEARING
                while self._store.add(heard, 0) < self.count - 1 and time.monotonic() < until:
                    time.sleep(0.05)  # the store ends with the first rank
                return True
            self._store.wait([said], timedelta(seconds=_HEARING))
            same = self._store.get(said) == message.encode()
            self._store.add(heard, 1)
            return not same
        except RuntimeError:  # the first rank has reported no error
            return True

    def is_first_to_lose(self) -> bool:
        """Whether no other rank has reported before that ranks are lost, as far as can be known."""
        self._heart.end()
        found: list[int] = []

        def ask() -> None:
            with suppress(RuntimeError):
                found.append(int(self._store.add("reprune/lost", 1)))

        # If the rank that holds the store is lost, nobody answers.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_HEARING)
        return found == [1] if found else self.number <= 1

    def _begin(self, begin: Callable[..., Any], tensor: Tensor, sent: int) -> Callable[[], Any]:
        """Begin a sum or a copy, for which this rank sends that many bytes; returns what waits for it.

        Newer releases of PyTorch do not wait for NCCL by themselves, and a rank is only found to be lost by waiting.
        """
        self._sent_by_nccl |= self._by_nccl and tensor.is_cuda
        wait: Callable[[], Any] = self._exchange(sent, lambda: begin(tensor, async_op=True)).wait
        return wait

    def _exchange(self, sent: int, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        try:
            found = work()
        except RuntimeError as error:
            if out_of_memory(error) is not None:
                raise
            raise LostRankError(
                f"process {self.number} of {self.count} has lost the others ({_short(error)}); see which of them ended "
                "and why."
            ) from None
        self.traffic.bytes += sent
        self.traffic.seconds += time.perf_counter() - began
        return found


def _own_gpu() -> str:
    """The id of the GPU that this process takes. Where a launcher shows each process one GPU alone, all see number 0.

    `_NO_GPU` if it takes none, or a part of one, for which NCCL takes no more than one process.
    """
    if not torch.cuda.is_available():
        return _NO_GPU
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    gpu = torch.cuda.get_device_properties(index)
    return _NO_GPU if _PART in gpu.name else str(gpu.uuid)


def _short(error: Exception) -> str:
    """The first sentence of PyTorch's error, without the place in its source that precedes it."""
    said = re.sub(r"^\[[^]]*\.cc:\d+\] *", "", " ".join(str(error).split()))
    return re.split(r"\. (?=[A-Z])", said)[0][:150]


ALONE = Alone()
"""The ranks of anything that runs in one process."""
