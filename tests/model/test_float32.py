"""Float32 products by oneDNN: exact, where they are taken, and never left switched on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from reprune.model import float32
from reprune.model.float32 import fast_float32

_AMD: dict[str, Any] = {"cpu_name": "AMD EPYC", "avx512_f": True, "amx_tile": False, "amx_bf16": False}
_HAS_SWITCH = hasattr(torch.backends.mkldnn, "matmul")


def _switch() -> str | None:
    return torch.backends.mkldnn.matmul.fp32_precision if _HAS_SWITCH else None


def _relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    exact = a.double() @ b.double()
    return float((a @ b - exact).norm() / exact.norm())


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    float32._is_better.cache_clear()
    yield
    float32._is_better.cache_clear()


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
    monkeypatch.setattr(float32, "_is_exact", lambda *_: True)
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


def test_so_are_those_whose_trial_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch)
    monkeypatch.setattr(float32, "_is_exact", lambda *_: False)
    before = _switch()
    with fast_float32():
        assert _switch() == before


def test_a_product_of_bfloat16_is_not_taken_for_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.__matmul__
    rounded = lambda a, b: plain(a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype))  # noqa: E731
    assert float32._is_exact(64, 640, 640, torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: rounded(a, b) if a.dtype == torch.float32 else plain(a, b)
    )
    assert not float32._is_exact(64, 640, 640, torch.Generator().manual_seed(0))
