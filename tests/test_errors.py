"""Errors keep their message in every process that they are sent to; a lack of memory is recognized by its message."""

from __future__ import annotations

import pickle
from itertools import islice

import pytest

from reprune.errors import (
    HalfPrecisionError,
    InputError,
    NumericalError,
    RepruneError,
    UnsupportedModelError,
    causes,
    out_of_memory,
)


@pytest.mark.parametrize("kind", [HalfPrecisionError, InputError, NumericalError, UnsupportedModelError])
def test_an_error_that_is_sent_says_the_same(kind: type[RepruneError]) -> None:
    error = kind("this model cannot be run")
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is kind
    assert (str(sent), vars(sent)) == (str(error), vars(error))


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_of_what_a_gpu_says_a_lack_of_memory_is_told_from_a_fault(said: str, lacks: bool) -> None:
    assert (out_of_memory(RuntimeError(said)) is not None) == lacks


def test_of_a_library_that_is_not_loaded_a_lack_of_memory_is_told_from_a_missing_file() -> None:
    assert out_of_memory(ImportError("l.so: cannot map zero-fill pages: Cannot allocate memory")) is not None
    assert out_of_memory(ImportError("l.so: cannot open shared object file")) is None


def test_what_an_error_comes_of_has_an_end_though_it_was_raised_again() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(islice(causes(first), 9)) == [first, second]
