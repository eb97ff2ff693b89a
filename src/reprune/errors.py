"""The errors that reprune raises on purpose. Knows nothing of models or tensors.

Every message names the place, what was expected, what came, and the remedy. The command line shows the message alone,
with exit code 2 for an `InputError` and 1 for any other `RepruneError`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class RepruneError(Exception):
    """Base of all errors that reprune raises on purpose."""


class InputError(RepruneError, ValueError):
    """What the user gave cannot be used: a path, a text, an option, a recipe (exit code 2)."""


class UnsupportedModelError(InputError):
    """The model cannot be pruned correctly; the message names the part and the reason (exit code 2)."""


class HalfPrecisionError(UnsupportedModelError):
    """The model has code of its own that runs with float32 products only (exit code 2)."""

    def __init__(self, reason: str) -> None:
        """`reason` says what cannot be computed, and in which dtype."""
        super().__init__(f"{reason}; use precision float32 ('--set precision=float32', or '--precision float32').")
        self.reason = reason

    def __reduce__(self) -> tuple[type[HalfPrecisionError], tuple[str]]:
        """Pickled for another process, it is the reason, from which the message is made again."""
        return type(self), (self.reason,)


class NumericalError(RepruneError):
    """A computation gave unusable numbers: NaN, or a matrix that no damping makes positive definite (exit code 1)."""


class ChangedError(RepruneError):
    """A file of the model was changed or replaced while it was in use (exit code 1)."""


class LostRankError(RepruneError):
    """Another process of the run has ended or cannot be reached (exit code 1)."""


def check_system() -> None:
    """Raise `InputError` on Windows, which lacks the locks and limits of POSIX that the doors import.

    And where Python keeps no docstrings, from which Transformers makes those of its classes.
    """
    if sys.platform == "win32":
        raise InputError("reprune needs Linux or macOS; on Windows, run it in WSL.")
    if sys.flags.optimize > 1:
        raise InputError(
            "Transformers needs docstrings, which -OO and PYTHONOPTIMIZE=2 strip; run Python without them."
        )


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Have what goes wrong with numbers say where."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"{place}: {error}") from None


@contextmanager
def going_on(how: str) -> Iterator[None]:
    """Say how to go on where another process is lost, or a file is changed, meanwhile."""
    try:
        yield
    except (LostRankError, ChangedError) as error:
        raise type(error)(f"{error} {how}") from None


def short(error: BaseException, most: int = 200) -> str:
    """An error of a library in one line, of so many characters behind its name."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.{most}}"


def of_type(value: object) -> str:
    """What a value is that is none of those expected, however long it prints: "Dataset", "list of Tensor"."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{name} of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else name


_LACKS_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    ": out of memory",
    "STATUS_ALLOC_FAILED",
)
_NO_THREAD = "can't start new thread"  # of Python, which does not say what there is too little of
_NO_MAPPING = "failed to map segment from shared object"  # of the system's loader, which does not either
_MAY_LACK_MEMORY = ("could not create a primitive", "could not create a memory")  # oneDNN gives no reason
"""How errors of PyTorch, of the libraries that it runs on a GPU, and of an import read where memory runs out."""
_OF_A_GPU = ("CUDA error", "CUDA driver error", "cuDNN error", "cusolver error", "HIP error", "Triton Error")
"""How errors begin that a GPU, its driver or the libraries on it report."""


def out_of_memory(error: BaseException) -> str | None:
    """What an error says that comes of too little memory, of the host or of a GPU; None of any other error."""
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
    """Whether a GPU or its driver is at fault, or the libraries on it, whatever code ran there."""
    return isinstance(error, RuntimeError) and str(error).startswith(_OF_A_GPU)


def lacks_home(error: BaseException) -> bool:
    """Whether it is pathlib's where the user has no home folder, which has no class of its own."""
    return isinstance(error, RuntimeError) and "home directory" in str(error)


def lacks_temporary_folder(error: BaseException) -> bool:
    """Whether it is tempfile's where no folder for temporary files can be written to, which names no way on."""
    return isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it comes of, each once: one that is raised again comes of those that came of it."""
    told: list[BaseException] = []
    while error is not None and error not in told:
        yield error
        told.append(error)
        error = error.__cause__ or error.__context__


def is_expected(error: BaseException) -> bool:
    """Whether that may go wrong without a fault of the program; of anything else the traceback is shown."""
    return isinstance(error, RepruneError | OSError) or out_of_memory(error) is not None
