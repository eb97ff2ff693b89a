"""The errors that reprune raises on purpose. Knows nothing of models or tensors.

Every message names the place, what was expected, what was found, and the remedy. The command line shows only the
message, and exits with code 2 for an `InputError` and 1 for any other `RepruneError`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class RepruneError(Exception):
    """Base of all errors that reprune raises on purpose."""


class InputError(RepruneError, ValueError):
    """An input of the user cannot be used: a path, a text, an option, a recipe (exit code 2)."""


class UnsupportedModelError(InputError):
    """The model cannot be pruned correctly; the message names the part and the reason (exit code 2)."""


class HalfPrecisionError(UnsupportedModelError):
    """The model has code of its own that runs with float32 products only (exit code 2)."""

    def __init__(self, reason: str) -> None:
        """`reason` says what cannot be computed, and in which dtype."""
        super().__init__(f"{reason}; use precision float32 ('--set precision=float32', or '--precision float32').")
        self.reason = reason

    def __reduce__(self) -> tuple[type[HalfPrecisionError], tuple[str]]:
        """Pickle the reason alone; the constructor makes the message from it again."""
        return type(self), (self.reason,)


class NumericalError(RepruneError):
    """A computation gave unusable numbers: NaN, or a matrix that no damping makes positive definite (exit code 1)."""


class ChangedError(RepruneError):
    """A file of the model was changed or replaced while it was in use (exit code 1)."""


class LostRankError(RepruneError):
    """Another process of the run has ended or cannot be reached (exit code 1)."""


def check_system() -> None:
    """Raise `InputError` if reprune cannot run here.

    Windows lacks the POSIX locks and limits that the doors import. Transformers builds docstrings from other ones,
    which Python strips under -OO.
    """
    if sys.platform == "win32":
        raise InputError("reprune needs Linux or macOS; on Windows, run it in WSL.")
    if sys.flags.optimize > 1:
        raise InputError(
            "Transformers needs docstrings, which -OO and PYTHONOPTIMIZE=2 strip; run Python without them."
        )


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the place before the message of a `NumericalError`."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"{place}: {error}") from None


@contextmanager
def going_on(how: str) -> Iterator[None]:
    """Add to the message of a `LostRankError` or a `ChangedError` how to go on."""
    try:
        yield
    except (LostRankError, ChangedError) as error:
        raise type(error)(f"{error} {how}") from None


def short(error: BaseException, most: int = 200) -> str:
    """A library's error in one line: its class, and up to `most` characters of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.{most}}"


def of_type(value: object) -> str:
    """The type of an unexpected value, for messages, as the value may be long: "Dataset", "list of Tensor"."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{name} of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else name


_LACKS_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    ": out of memory",
    "'out of memory'",  # NCCL's
    "STATUS_ALLOC_FAILED",
)
_NO_THREAD = "can't start new thread"  # from Python, which does not say what has run out
_NO_MAPPING = "failed to map segment from shared object"  # from the system's loader, which does not either
_MAY_LACK_MEMORY = ("could not create a primitive", "could not create a memory")  # oneDNN gives no reason
"""Texts of the errors that PyTorch, its libraries for GPUs, and an import raise when memory runs out."""
_OF_A_GPU = ("CUDA error", "CUDA driver error", "cuDNN error", "cusolver error", "HIP error", "Triton Error")
"""The beginnings of the errors that a GPU, its driver or its libraries report."""


def out_of_memory(error: BaseException) -> str | None:
    """The message for an error caused by too little memory, of the host or of a GPU; None for any other error."""
    said = " ".join(str(error).split()).rpartition("DefaultCPUAllocator: ")[2]
    if isinstance(error, RuntimeError) and said == _NO_THREAD:
        return f"out of memory, or of processes: see 'ulimit -u' ({said})"
    if isinstance(error, ImportError) and _NO_MAPPING in said:
        return f"out of memory, or a disk mounted with noexec ({said[:160]})"
    told = isinstance(error, RuntimeError | ImportError) and any(text in str(error) for text in _LACKS_MEMORY)
    perhaps = isinstance(error, RuntimeError) and any(text in said for text in _MAY_LACK_MEMORY)
    if not (told or perhaps or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
        return None
    return f"{'probably ' if perhaps else ''}out of memory{f' ({said[:160]})' if said else ''}"


def is_of_gpu(error: BaseException) -> bool:
    """Whether an error was reported by a GPU, its driver or its libraries, whatever code ran there."""
    return isinstance(error, RuntimeError) and str(error).startswith(_OF_A_GPU)


def lacks_home(error: BaseException) -> bool:
    """Whether it is pathlib's error for a user without a home folder, which has no class of its own."""
    return isinstance(error, RuntimeError) and "home directory" in str(error)


def lacks_temporary_folder(error: BaseException) -> bool:
    """Whether it is tempfile's error for a lack of writable temporary folders, whose message names no remedy."""
    return isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the chain of its causes, each once: an error that is raised again may be among its own causes."""
    told: list[BaseException] = []
    while error is not None and error not in told:
        yield error
        told.append(error)
        error = error.__cause__ or error.__context__


def is_expected(error: BaseException) -> bool:
    """Whether an error may occur without a fault of the program; for any other, the traceback is shown."""
    return isinstance(error, RepruneError | OSError) or out_of_memory(error) is not None
