"""What processes sum, copy and tell each other arrives whole, however it is sent, and what each sends is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reprune.errors import InputError, LostRankError, out_of_memory
from reprune.math import ranks as module
from reprune.math.heartbeat import Heartbeat
from reprune.math.ranks import ALONE, Together, Traffic

_PAUSE = 0.01


def _rank(number: int, count: int, store: dist.Store | None = None) -> Together:
    ranks = object.__new__(Together)
    ranks.number, ranks.count, ranks.traffic = number, count, Traffic()
    ranks._store = store or dist.HashStore()
    ranks._heart, ranks._meetings, ranks._patience = Heartbeat(ranks._store), 0, 10.0
    return ranks


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors of each sum over ranks; two other ranks add twice the values each."""
    found: list[Tensor] = []

    def all_reduce(tensor: Tensor, async_op: bool) -> Any:
        assert tensor.is_contiguous(), "or PyTorch refuses it"
        found.append(tensor.clone())

        def wait() -> None:
            time.sleep(_PAUSE)
            tensor.mul_(5)

        return SimpleNamespace(wait=wait)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return found


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Callable[[Together, int], None]:
    """Keeps what one rank sends until others take it. The function sets whose turn it is, and who sends."""
    sent: list[Tensor] = []
    taken, now = [0], [0, 0]

    def turn(ranks: Together, source: int) -> None:
        now[:], taken[0] = [ranks.number, source], 0
        if ranks.number == source:
            sent.clear()

    def broadcast(raw: Tensor, src: int, async_op: bool) -> Any:
        assert raw.numel() and src == now[1]

        def wait() -> None:
            if now[0] == src:
                sent.append(raw.clone())
            else:
                assert raw.shape == sent[taken[0]].shape, "or both wait for the other for ever"
                raw.copy_(sent[taken[0]])
                taken[0] += 1

        return SimpleNamespace(wait=wait)

    monkeypatch.setattr(dist, "broadcast", broadcast)
    return turn


@given(st.integers(1, 9), st.integers(0, 40))
def test_each_sample_is_one_ranks_and_has_a_number_there(count: int, samples: int) -> None:
    drawn = torch.randperm(samples, generator=torch.Generator().manual_seed(samples))
    of_all = []
    for ranks in (_rank(number, count) for number in range(count)):
        own = ranks.own(drawn)
        assert sorted(own.tolist()) == list(range(ranks.part(samples)))
        of_all += [one * count + ranks.number for one in own.tolist()]
    assert sorted(of_all) == list(range(samples))
    assert ALONE.part(samples) == samples


def test_small_tensors_are_summed_together_and_large_ones_alone(
    summed: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUCKET", 64)
    tensors = [torch.arange(1.0, count + 1) for count in (3, 20, 5, 9, 1, 40)]
    tensors += [torch.arange(36.0).view(6, 6).T, torch.ones(2, 2), torch.tensor(3.0)]
    expected = [5 * tensor for tensor in tensors]
    ranks = _rank(1, 3)
    ranks.sum_(tensors)
    assert all(torch.equal(one, other) for one, other in zip(tensors, expected, strict=True))
    assert [one.numel() for one in summed] == [20, 3 + 5 + 9, 40, 1 + 36, 4 + 1]
    assert ranks.traffic.bytes == sum(2 * 4 * one.numel() * 2 // 3 for one in summed)
    assert ranks.traffic.seconds > 4.5 * _PAUSE
    before = Traffic(ranks.traffic.bytes, ranks.traffic.seconds)
    ranks.sum_([torch.ones(3)])
    assert ranks.traffic.since(before).bytes == 16
    assert _PAUSE / 2 < ranks.traffic.since(before).seconds == ranks.traffic.seconds - before.seconds


def test_the_sums_of_all_large_tensors_are_begun_before_any_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By NCCL, waiting looks once a millisecond whether a sum is done, which is as long as the sum itself takes."""
    did: list[str] = []

    def all_reduce(tensor: Tensor, async_op: bool) -> Any:
        did.append(f"sum {len(tensor)}")
        return SimpleNamespace(wait=lambda: did.append(f"wait {len(tensor)}"))

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(module, "_BUCKET", 64)
    _rank(0, 2).sum_([torch.ones(count) for count in (20, 3, 30)])
    assert did == ["sum 20", "sum 30", "sum 3", "wait 3", "wait 20", "wait 30"]


def test_numbers_are_added_in_float64(summed: list[Tensor]) -> None:
    assert _rank(0, 2).add([1 + 2.0**-40, -3]) == [5 + 5 * 2.0**-40, -15.0]


def test_gradients_are_summed_where_any_rank_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four parameters have gradients here, in another rank, in both, and in none."""
    others = [torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([0.0] * 2 + [2.0] * 2 + [3.0] * 2)]

    def all_reduce(tensor: Tensor, async_op: bool) -> Any:
        return SimpleNamespace(wait=lambda: tensor.add_(others.pop(0)))

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    parameters[0].grad, parameters[2].grad = torch.ones(2), torch.ones(2)
    _rank(0, 2).sum_gradients_(parameters)
    found = [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters]
    assert found == [[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], None]


@pytest.mark.parametrize("source", [0, 2])
def test_copies_have_the_bits_of_what_one_has(source: int, wire: Callable[[Together, int], None]) -> None:
    def made(value: float) -> list[Tensor]:
        whole = torch.full((4, 6), value)
        kinds = [torch.full((2, 3), value, dtype=dtype) for dtype in (torch.float64, torch.bfloat16, torch.bool)]
        return [torch.empty(0, 3), whole[:, 1::2], torch.tensor(value), *kinds]

    sender, receiver = _rank(source, 3), _rank(1, 3)
    own, others = made(1.5), made(0.0)
    wire(sender, source)
    sender.copy_(own, source)
    wire(receiver, source)
    receiver.copy_(others, source)
    assert all(torch.equal(one, other) for one, other in zip(own, others, strict=True))
    assert (sender.traffic.bytes, receiver.traffic.bytes) == (4 * 12 + 4 + 6 * (8 + 2 + 1), 0)


def test_a_rank_that_is_lost_in_a_sum_or_a_copy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """By NCCL, calls without `async_op` return at once; only waiting for one that has it tells of the loss."""

    def lost() -> None:
        raise RuntimeError("timed out")

    def begin(*_: Any, async_op: bool = False, **__: Any) -> Any:
        return SimpleNamespace(wait=lost) if async_op else None

    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, begin)
    for exchange in (_rank(0, 2).sum_, _rank(0, 2).copy_):
        with pytest.raises(LostRankError, match=r"process 0 of 2 has lost the others \(timed out\)"):
            exchange([torch.ones(3)])


def test_a_rank_whose_gpu_lacks_memory_for_a_sum_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"

    def begin(*_: Any, **__: Any) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr(dist, "all_reduce", begin)
    with pytest.raises(RuntimeError, match="Cuda failure 2") as caught:
        _rank(0, 2).sum_([torch.ones(3)])
    assert str(out_of_memory(caught.value)).startswith("out of memory")


@pytest.mark.parametrize("source", [0, 2])
def test_what_one_tells_is_what_the_others_hear(source: int, wire: Callable[[Together, int], None]) -> None:
    value = {"of": ["all", 1.5, None, {"ä": []}]}
    sender, receiver = _rank(source, 3), _rank(1, 3)
    wire(sender, source)
    assert sender.tell(value, source) == value
    wire(receiver, source)
    assert receiver.tell("another", source) == value


def test_all_tell_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Together, "tell", lambda _, value, source=0: (value, source))
    assert _rank(1, 3).each_tells("own") == [("own", 0), ("own", 1), ("own", 2)]


def test_tensors_that_the_first_tells_keep_their_names_shapes_and_kinds(wire: Callable[[Together, int], None]) -> None:
    sent = {
        "a": torch.arange(6.0).view(2, 3).T,
        "b": torch.tensor([True, False]),
        "c": torch.ones(2, dtype=torch.bfloat16),
        "none": torch.empty(0, 2, dtype=torch.int64),
    }
    first, second = _rank(0, 2), _rank(1, 2)
    wire(first, 0)
    told = first.tell_tensors(sent)
    wire(second, 0)
    heard = second.tell_tensors(None)
    for found in (told, heard):
        assert found.keys() == sent.keys()
        for name, tensor in sent.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert ALONE.tell_tensors(None) == {}


def test_what_the_first_does_all_come_to_or_fail_of(wire: Callable[[Together, int], None]) -> None:
    store, wrong = dist.HashStore(), InputError("no such file")
    first, second = _rank(0, 2, store), _rank(1, 2, store)

    def failing() -> Any:
        raise wrong

    def nobody_asked() -> Any:
        raise AssertionError

    for work, expected in ((lambda: [1, 2], [1, 2]), (lambda: None, None)):
        wire(first, 0)
        assert first.first_does(work) == expected
        wire(second, 0)
        assert second.first_does(nobody_asked) == expected
    wire(first, 0)
    with pytest.raises(InputError) as own:
        first.first_does(failing)
    assert own.value is wrong
    wire(second, 0)
    with pytest.raises(InputError, match=r"^no such file$"):
        second.first_does(nobody_asked)
    assert first._meetings == second._meetings == 3, "however long the work takes"


def test_each_meeting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    first, second = _rank(0, 2, store), _rank(1, 2, store)
    first.wait_for_first()
    waited: list[Sequence[Any]] = []
    monkeypatch.setattr(Heartbeat, "wait", lambda _, key, patience: waited.append((store.check([key]), patience)))
    for _ in range(2):
        second.wait_for_first()
    assert waited == [(True, 10.0), (False, 10.0)]
