"""oneDNN is used for float32 products only if they are exact; freed memory is kept until the context ends."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from reprune.engine.peak_memory import resident_bytes
from reprune.model import full_speed as module
from reprune.model.full_speed import fast_float32, full_speed, kept_heap, lasting, trim_heap
from reprune.model.streams import Stream

_AMD: dict[str, Any] = {"cpu_name": "AMD EPYC", "avx512_f": True, "amx_tile": False, "amx_bf16": False}
_HAS_SWITCH = hasattr(torch.backends.mkldnn, "matmul")
_HAS_HEAP = hasattr(ctypes.CDLL(None), "mallopt") and Path("/proc/self/statm").exists()
_MIB = 2**20
_TRIM, _MMAP = -1, -3  # of glibc's malloc.h
needs_heap = pytest.mark.skipif(not _HAS_HEAP, reason="the system's heap is not glibc's")


def _switch() -> str | None:
    return torch.backends.mkldnn.matmul.fp32_precision if _HAS_SWITCH else None


def _relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    exact = a.double() @ b.double()
    return float((a @ b - exact).norm() / exact.norm())


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    module._is_better.cache_clear()
    yield
    module._is_better.cache_clear()


def _machine(monkeypatch: pytest.MonkeyPatch, **differs: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: _AMD | differs, raising=False)


@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(2048, 640, 1024), (256, 2048, 2048), (128, 16, 1920), (1, 7, 3)]
)
def test_products_within_it_are_of_float32(rows: int, inner: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    with fast_float32():
        assert _relative_error(a, b) < 1e-6
        assert _relative_error(a, b.T.contiguous().T) < 1e-6


def test_the_switch_is_put_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch)
    before = _switch()

    @fast_float32()
    def fails() -> None:
        raise KeyError("any")

    for _ in range(2):
        with pytest.raises(KeyError):
            fails()
        assert _switch() == before


@pytest.mark.skipif(not _HAS_SWITCH, reason="this PyTorch has no such switch")
def test_it_is_switched_on_where_a_trial_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch)
    monkeypatch.setattr(module, "_is_exact", lambda *_: True)
    with fast_float32():
        assert _switch() == "bf16"


@pytest.mark.parametrize(
    "differs",
    [{"cpu_name": "Intel(R) Xeon(R)"}, {"amx_tile": True}, {"amx_bf16": True}, {"avx512_f": False}, {"cpu_name": ""}],
)
def test_other_processors_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch, differs: dict[str, Any]) -> None:
    _machine(monkeypatch, **differs)
    before = _switch()
    with fast_float32():
        assert _switch() == before


def test_a_processor_whose_trial_is_rounded_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch)
    monkeypatch.setattr(module, "_is_exact", lambda *_: False)
    before = _switch()
    with fast_float32():
        assert _switch() == before


def test_a_product_of_bfloat16_is_not_taken_for_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.__matmul__
    rounded = lambda a, b: plain(a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype))  # noqa: E731
    assert module._is_exact(64, 640, 640, torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: rounded(a, b) if a.dtype == torch.float32 else plain(a, b)
    )
    assert not module._is_exact(64, 640, 640, torch.Generator().manual_seed(0))


def _kept_of(size: int) -> int:
    """How many bytes of a tensor of `size` bytes this process still holds once it is freed."""
    trim_heap()
    before = resident_bytes()
    tensor = torch.ones(size, dtype=torch.uint8)
    assert resident_bytes() - before > 0.9 * size
    del tensor
    return resident_bytes() - before


_FREED = 240 * _MIB
"""Less than what always has its own mapping, more than other tests are likely to leave free at one place."""


@needs_heap
def test_what_is_freed_is_kept_and_given_back_at_the_end() -> None:
    assert _kept_of(_FREED) < 8 * _MIB  # more than glibc would ever keep by default
    with full_speed():
        assert _kept_of(_FREED) > _FREED - 8 * _MIB
        kept = resident_bytes()
    assert kept - resident_bytes() > _FREED - 16 * _MIB
    assert _kept_of(_FREED) < 8 * _MIB


@needs_heap
def test_a_very_large_tensor_goes_back_at_once() -> None:
    with kept_heap():
        assert _kept_of(320 * _MIB) < 8 * _MIB


@needs_heap
def test_freed_memory_goes_back_to_the_system_after_an_error_too() -> None:
    with pytest.raises(KeyError), kept_heap():
        raise KeyError("any")
    assert _kept_of(_FREED) < 8 * _MIB


def test_a_system_without_such_a_heap_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with kept_heap():
        assert torch.ones(8).sum() == 8


class _Old:
    """A library whose `mallopt` accepts thresholds only up to glibc's limit before 2.35, or none at all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.set: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == _MMAP and value > self.most:
            return 0
        self.set[parameter] = value
        return 1

    def malloc_trim(self, _: int) -> int:
        return 1


@pytest.mark.parametrize(("most", "wanted"), [(2**25, {_MMAP: 2**25, _TRIM: 2**31 - 1}), (0, {})])
def test_an_older_heap_keeps_what_it_can(most: int, wanted: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With one threshold but not the other, glibc would give each tensor its own pages."""
    library = _Old(most)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    with kept_heap():
        assert library.set == wanted


@needs_heap
def test_a_stream_takes_no_place_in_the_heap_that_the_next_pass_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap would be larger by as much from then on, also when the stream is closed."""

    def run(tensors: int) -> None:
        held = [torch.ones(8 * _MIB, dtype=torch.uint8) for _ in range(tensors)]
        assert len(held) == tensors

    monkeypatch.setattr(module, "_LARGE", 16 * _MIB)
    states = torch.arange(48.0).view(-1, 1, 1).expand(-1, 1024, 256)
    with kept_heap():
        run(9)  # one more than later: something small may come to lie where one was
        before = resident_bytes()
        stream = Stream(tuple(states.shape), None)
        stream.write(slice(0, 48), states)
        assert resident_bytes() - before > 40 * _MIB
        run(8)
        assert torch.equal(stream.read(slice(0, 48)), states)
        stream.close()
        assert resident_bytes() - before < 8 * _MIB


def test_where_a_large_tensor_cannot_be_mapped_pytorch_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(module, "_LARGE", 8)
    monkeypatch.setattr(mmap, "mmap", full)
    assert lasting((2, 3)).shape == (2, 3)
