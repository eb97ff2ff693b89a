"""Within `undisturbed` no setting of the caller changes a result; after it all settings are the caller's again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.model.undisturbed import undisturbed


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device("cpu")  # with None, PyTorch 2.6 could no longer name it


@contextmanager
def _two_of_autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", dtype=torch.float16, cache_enabled=False):
        yield


@contextmanager
def _older_setting(precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def _newer_setting(place: Any, precision: str) -> Iterator[None]:
    before = place.fp32_precision
    place.fp32_precision = precision
    try:
        yield
    finally:
        place.fp32_precision = before


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _summed_otherwise(name: str) -> Iterator[None]:
    before = getattr(torch.backends.cuda.matmul, name)
    setattr(torch.backends.cuda.matmul, name, not before)
    try:
        yield
    finally:
        setattr(torch.backends.cuda.matmul, name, before)


_SUMS = ["allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"]
if hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"):  # since PyTorch 2.7
    _SUMS.append("allow_fp16_accumulation")

SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast in autocast": _two_of_autocast,
    "float64": lambda: _default_dtype(torch.float64),
    "bfloat16": lambda: _default_dtype(torch.bfloat16),
    "TF32": lambda: _older_setting("high"),
    "products in bfloat16": lambda: _older_setting("medium"),
    "meta by default": lambda: _default_device("meta"),
    "meta in a context": lambda: torch.device("meta"),
    **{name: partial(_summed_otherwise, name) for name in _SUMS},
}


if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # since PyTorch 2.9
    SURROUNDINGS |= {
        "TF32 of all": lambda: _newer_setting(torch.backends, "tf32"),
        "TF32 of the GPU": lambda: _newer_setting(torch.backends.cuda.matmul, "tf32"),
        "products in bfloat16, of the CPU": lambda: _newer_setting(torch.backends.mkldnn.matmul, "bf16"),
    }


def _rounding() -> list[object]:
    """The settings for float32 products; those that are unset count as exact."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    found = [getattr(of, "fp32_precision", "none") for of in (torch.backends, torch.backends.cuda.matmul, matmul)]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # if the newer settings are used
        older = "unsaid"
    return [older, *("ieee" if one == "none" else one for one in found)]


def _sums() -> list[object]:
    return [getattr(torch.backends.cuda.matmul, name) for name in _SUMS]


def _settings() -> list[object]:
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    autocast = [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]
    made = torch.empty(0)
    grad = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return [depth, autocast, torch.is_autocast_cache_enabled(), made.dtype, made.device, *grad, *_rounding(), *_sums()]


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_all_is_as_pytorch_starts_and_then_as_the_caller_had_it(name: str) -> None:
    at_first = _settings()
    with SURROUNDINGS[name]():
        before = _settings()
        assert before != at_first
        with undisturbed():
            assert _settings() == at_first
        assert _settings() == before
        with pytest.raises(ZeroDivisionError), undisturbed():
            raise ZeroDivisionError
        assert _settings() == before
    assert _settings() == at_first


def test_what_cannot_be_deterministic_runs_where_the_caller_asked_for_it() -> None:
    def run() -> None:
        torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))  # has no deterministic implementation on a CPU either

    with _deterministic():
        with undisturbed():
            run()
            assert torch.are_deterministic_algorithms_enabled(), "what can be, is"
        with pytest.raises(RuntimeError, match="deterministic"):
            run()
        torch.use_deterministic_algorithms(True, warn_only=True)
        with undisturbed(), pytest.warns(UserWarning, match="deterministic"):
            run()
    with undisturbed():
        assert not torch.are_deterministic_algorithms_enabled()


def test_weights_that_change_are_cast_anew_within_an_outer_autocast() -> None:
    linear, X = nn.Linear(4, 4, bias=False), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product: Tensor = linear(X)
            return product

    with torch.autocast("cpu", dtype=torch.bfloat16):
        run()
        with undisturbed():
            run()
            with torch.no_grad():
                linear.weight.zero_()
            assert not run().any()
        assert not run().any(), "nor is what the caller has cast before"


def test_random_numbers_are_those_that_the_caller_would_have_drawn() -> None:
    torch.manual_seed(1)
    random.seed(1)
    expected, of_python = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    with undisturbed():
        torch.manual_seed(2)
        torch.rand(3)
        random.random()
    assert torch.equal(torch.rand(3), expected)
    assert random.random() == of_python


def test_a_gpu_that_is_begun_with_meanwhile_has_the_callers_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, seeds = [False], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: begun[0])
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(1)
    with undisturbed():
        torch.manual_seed(2)
        begun[0] = True
    assert seeds == [1, 2, 1]
