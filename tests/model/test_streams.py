"""A stream returns what was written to it, from memory or a file, and frees its space when it is closed."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from reprune.model.block import Call
from reprune.model.passing import Passing
from reprune.model.streams import AHEAD, Stream, StreamStore, _sender, pass_on

_SHAPE = (5, 3, 4)
_BYTES = 5 * 3 * 4 * 4
_MAPS = Path("/proc/self/maps")
places = pytest.mark.parametrize("memory", [_BYTES, 0], ids=["memory", "disk"])


def _states() -> Tensor:
    return torch.randn(_SHAPE, generator=torch.Generator().manual_seed(0))


@places
def test_what_is_written_is_read(memory: int, tmp_path: Path) -> None:
    stream, states = StreamStore(memory, tmp_path).new(_SHAPE), _states()
    assert stream.on_disk == (memory == 0)
    stream.write(slice(0, 3), states[:3])
    stream.write(slice(3, 5), states[3:])
    assert torch.equal(stream.read(slice(0, 5)), states)
    assert torch.equal(stream.read(slice(2, 4)), states[2:4])
    assert torch.equal(stream.read(torch.tensor([4, 0, 2])), states[[4, 0, 2]])
    assert stream.read(slice(4, 5)).shape == (1, 3, 4)


@places
def test_later_states_take_the_place_of_earlier_ones(memory: int, tmp_path: Path) -> None:
    stream = StreamStore(memory, tmp_path).new(_SHAPE)
    stream.write(slice(0, 5), _states())
    stream.write(slice(1, 3), torch.zeros(2, 3, 4))
    assert torch.equal(stream.read(slice(1, 3)), torch.zeros(2, 3, 4))
    assert torch.equal(stream.read(slice(3, 5)), _states()[3:])


@places
def test_states_are_held_in_float32_and_without_gradients(memory: int, tmp_path: Path) -> None:
    stream = StreamStore(memory, tmp_path).new(_SHAPE)
    stream.write(slice(0, 5), _states().bfloat16().requires_grad_())
    found = stream.read(slice(0, 5))
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    assert not found.requires_grad
    assert torch.equal(found, _states().bfloat16().float())


class _Operations(TorchDispatchMode):
    """Records the names of operations in order, and their keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.keywords: list[dict[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.names.append(func.overloadpacket.__name__)
        self.keywords.append(kwargs or {})
        return func(*args, **(kwargs or {}))


@places
def test_states_of_another_kind_are_copied_once(memory: int, tmp_path: Path) -> None:
    stream, states = StreamStore(memory, tmp_path).new(_SHAPE), _states().bfloat16()
    with _Operations() as operations:
        stream.write(slice(1, 3), states[1:3])
    assert [name for name in operations.names if "copy" in name] == ["copy_"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a GPU's queues of work are asked for, in order; there is no GPU."""
    found: list[str] = []

    @contextmanager
    def within(queue: str) -> Iterator[None]:
        with _Operations() as operations:
            yield
        found.append(f"in {queue}: {' '.join(name for name in operations.names if name != 'device')}")

    class Mark:
        def synchronize(self) -> None:
            found.append("this process waits")

    class Computing:
        def wait_stream(self, queue: str) -> None:
            found.append(f"wait for {queue}")

        def record_event(self) -> Mark:
            found.append("mark")
            return Mark()

    def used_by(states: Tensor, queue: Computing) -> None:
        assert (states.device.type, type(queue)) == ("cuda", Computing)
        found.append("used by computations")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"copies to {device}")
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Computing())
    monkeypatch.setattr(Tensor, "record_stream", used_by)
    yield found
    _sender.cache_clear()


@pytest.mark.parametrize("samples", [torch.tensor([4, 0, 2]), slice(1, 4)], ids=["by number", "in a row"])
def test_what_a_gpu_reads_is_sent_from_pinned_memory_beside_its_computations(
    samples: slice | Tensor, tmp_path: Path, asked: list[str]
) -> None:
    stream = StreamStore(_BYTES, tmp_path).new(_SHAPE)
    with FakeTensorMode(allow_non_fake_inputs=True), _Operations() as operations:
        found = stream.read(samples, torch.device("cuda:0"))
    assert (found.shape, found.dtype, found.device.type) == ((3, 3, 4), torch.float32, "cuda")
    pinned, sent = (operations.keywords[operations.names.index(name)] for name in ("empty", "_to_copy"))
    assert pinned["pin_memory"]
    assert sent["non_blocking"]
    assert operations.names.count("index_select") == 1  # not first into unpinned memory
    queue = "copies to cuda:0"
    assert asked == [f"in {queue}: _to_copy", f"wait for {queue}", "used by computations", "mark"]


def test_what_is_a_samples_own_is_sent_the_same_way(asked: list[str]) -> None:
    passing, own = Passing("model", 3), torch.arange(12).view(3, 4)
    calls = [Call((None, value), {}, 0) for value in (own, own.flip(0))]
    passing.take(slice(0, 3), calls[:1], lambda: calls[1:])
    with FakeTensorMode(allow_non_fake_inputs=True):
        passing.finish(torch.device("cuda:0"))
        with _Operations() as operations:
            found = passing.call(0, torch.tensor([2, 0, 1])).args[1]
    assert (found.shape, found.dtype, found.device.type) == ((3, 4), torch.int64, "cuda")
    assert operations.keywords[operations.names.index("empty")]["pin_memory"]
    queue = "copies to cuda:0"
    assert asked == [f"in {queue}: _to_copy", f"wait for {queue}", "used by computations", "mark"]


def test_all_that_a_gpu_reads_is_in_one_queue_however_the_gpu_is_named(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are read for `cuda`, which is the current one, and what is a sample's own for the number of that."""
    current = [1]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    stream = StreamStore(_BYTES, tmp_path).new(_SHAPE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for name in ("cuda", "cuda:1"):
            stream.read(slice(0, 2), torch.device(name))
        current[0] = 0
        assert stream.read(slice(0, 2), torch.device("cuda")).device == torch.device("cuda:0")
    assert [one for one in asked if one.startswith("in ")] == [
        f"in copies to cuda:{number}: _to_copy" for number in (1, 1, 0)
    ]


@pytest.mark.parametrize("itself", [True, False])
def test_a_gpu_has_its_next_states_before_this_process_waits_for_what_it_puts_out(
    itself: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, did = StreamStore(2 * _BYTES, tmp_path), list[str]()
    stream = store.new(_SHAPE)
    into = stream if itself else store.new(_SHAPE)
    stream.write(slice(0, 5), _states())

    def noted(what: str, function: Any) -> Any:
        def call(*given: Any) -> Any:
            did.append(f"{what} {next(one for one in given if isinstance(one, slice)).start}")
            return function(*given)

        return call

    for name in ("read", "write"):
        monkeypatch.setattr(Stream, name, noted(name, getattr(Stream, name)))
    batches = [slice(0, 2), slice(2, 4), slice(4, 5)]
    pass_on(batches, stream.read, noted("run", lambda states, _: states + 1), into.write)
    assert did == ["read 0", *("run 0", "read 2", "write 0"), *("run 2", "read 4", "write 2"), *("run 4", "write 4")]
    assert torch.equal(into.read(slice(0, 5)), _states() + 1)


def test_a_gpu_is_sent_no_more_than_two_states_beyond_those_that_it_computes_with(
    tmp_path: Path, asked: list[str]
) -> None:
    """They take its memory. Each step reads inputs and targets; this GPU begins a step only when it must."""
    stream = StreamStore(_BYTES, tmp_path).new(_SHAPE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for _ in range(4):
            stream.read(slice(0, 2), torch.device("cuda:0"))
            stream.read(slice(0, 2), torch.device("cuda:0"))
            asked.append("step")
    steps = computing = most = 0  # steps asked for so far, and the number of the one that is computed
    marks, sent = deque[int](), list[int]()  # by numbers of steps
    for one in asked:
        if one.startswith("in copies"):
            sent.append(steps)
            most = max(most, sum(step > computing for step in sent))
        elif one == "mark":
            marks.append(steps)
        elif one == "this process waits":
            computing = marks.popleft()
        steps += one == "step"
    assert most == AHEAD == 2


def test_what_a_gpu_writes_comes_by_pinned_memory(tmp_path: Path) -> None:
    stream = StreamStore(_BYTES, tmp_path).new(_SHAPE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        states = torch.empty(2, 3, 4, device="cuda:0")
        with _Operations() as operations:
            stream.write(slice(1, 3), states)
    assert operations.keywords[operations.names.index("empty")]["pin_memory"]
    assert [name for name in operations.names if "copy" in name] == ["copy_", "copy_"]


@places
def test_what_was_read_by_number_does_not_change_with_the_stream(memory: int, tmp_path: Path) -> None:
    stream = StreamStore(memory, tmp_path).new(_SHAPE)
    stream.write(slice(0, 5), _states())
    found = stream.read(torch.tensor([1, 2]))
    stream.write(slice(0, 5), torch.zeros(_SHAPE))
    assert torch.equal(found, _states()[1:3])


@places
def test_streams_do_not_share_their_states(memory: int, tmp_path: Path) -> None:
    store = StreamStore(2 * memory, tmp_path)
    first, second = store.new(_SHAPE), store.new(_SHAPE)
    first.write(slice(0, 5), torch.ones(_SHAPE))
    second.write(slice(0, 5), torch.zeros(_SHAPE))
    assert torch.equal(first.read(slice(0, 5)), torch.ones(_SHAPE))


def test_streams_go_to_disk_when_the_memory_is_spent_and_come_back_when_it_is_freed(tmp_path: Path) -> None:
    store = StreamStore(2 * _BYTES + _BYTES // 2, tmp_path)
    first, second, third = store.new(_SHAPE), store.new(_SHAPE), store.new(_SHAPE)
    assert [first.on_disk, second.on_disk, third.on_disk] == [False, False, True]
    store.free(third)
    assert store.new(_SHAPE).on_disk
    store.free(first)
    assert not store.new(_SHAPE).on_disk
    assert store.new(_SHAPE).on_disk


def test_a_folder_is_made_when_it_is_needed_and_its_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "to" / "streams"
    store = StreamStore(_BYTES, folder)
    held = store.new(_SHAPE)
    assert not folder.exists()
    streams = [store.new(_SHAPE) for _ in range(3)]
    for stream in streams:
        stream.write(slice(0, 5), _states())
    assert len(list(folder.iterdir())) == 3
    assert all(file.stat().st_size == _BYTES for file in folder.iterdir())
    store.free(streams[0])
    streams[1].close()
    assert len(list(folder.iterdir())) == 1
    store.free(streams[2])
    store.free(held)
    assert list(folder.iterdir()) == []


def test_a_store_that_is_closed_gives_all_room_back_though_its_streams_are_still_held(tmp_path: Path) -> None:
    with StreamStore(_BYTES, tmp_path) as store:
        streams = [store.new(_SHAPE) for _ in range(3)]
        for stream in streams:
            stream.write(slice(0, 5), _states())
        assert len(list(tmp_path.iterdir())) == 2
    assert [*tmp_path.iterdir()] == []
    assert not _MAPS.exists() or ".stream" not in _MAPS.read_text()
    assert store.has_memory_for(_SHAPE)


@places
def test_of_several_streams_one_is_freed_and_the_others_closed_with_the_store(memory: int, tmp_path: Path) -> None:
    with StreamStore(2 * memory, tmp_path) as store:
        first, second = store.new(_SHAPE), store.new(_SHAPE)
        second.write(slice(0, 5), _states())
        store.free(first)
        assert torch.equal(second.read(slice(0, 5)), _states())
    assert [*tmp_path.iterdir()] == []
    assert second.read(slice(0, 5)).numel() == 0
    assert store.has_memory_for((10, 3, 4)) == (memory > 0)
    assert not store.has_memory_for((11, 3, 4))  # no memory is returned twice


def test_a_disk_without_room_is_named_and_keeps_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}.*\.stream'"):
        StreamStore(0, tmp_path).new(_SHAPE)
    assert [*tmp_path.iterdir()] == []


@places
def test_closing_twice_does_no_harm(memory: int, tmp_path: Path) -> None:
    stream = StreamStore(memory, tmp_path).new(_SHAPE)
    stream.close()
    stream.close()


@places
def test_a_stream_at_rest_still_has_its_states(memory: int, tmp_path: Path) -> None:
    stream = StreamStore(memory, tmp_path).new(_SHAPE)
    stream.write(slice(0, 5), _states())
    stream.rest()
    assert torch.equal(stream.read(slice(1, 4)), _states()[1:4])
    stream.rest()
    stream.write(slice(0, 1), torch.zeros(1, 3, 4))
    stream.rest()
    assert torch.equal(stream.read(slice(0, 5)), torch.cat([torch.zeros(1, 3, 4), _states()[1:]]))


@pytest.mark.skipif(not _MAPS.exists(), reason="only Linux says which files are in memory")
def test_the_file_of_a_stream_at_rest_takes_no_memory(tmp_path: Path) -> None:
    def mapped() -> bool:
        return ".stream" in _MAPS.read_text()

    stream = StreamStore(0, tmp_path).new(_SHAPE)
    stream.write(slice(0, 5), _states())
    assert mapped()
    stream.rest()
    assert not mapped()


def test_states_of_another_shape_are_not_written(tmp_path: Path) -> None:
    stream = StreamStore(_BYTES, tmp_path).new(_SHAPE)
    with pytest.raises(RuntimeError):
        stream.write(slice(0, 2), torch.zeros(2, 3, 5))


def test_a_tensor_is_in_memory_as_far_as_the_budget_goes_and_in_a_file_that_nothing_else_finds(tmp_path: Path) -> None:
    with StreamStore(40, tmp_path / "streams") as store:
        held = store.tensor((2, 5), torch.bfloat16)
        assert not (tmp_path / "streams").exists()
        assert not store.has_memory_for((1, 6, 1))
        assert store.has_memory_for((1, 5, 1))
        filed = store.tensor((3, 2), torch.int64)
        assert not list((tmp_path / "streams").iterdir())
        filed[:] = torch.arange(6).view(3, 2)
        assert (held.shape, held.dtype, filed.tolist()) == ((2, 5), torch.bfloat16, [[0, 1], [2, 3], [4, 5]])
    assert filed.sum() == 15
