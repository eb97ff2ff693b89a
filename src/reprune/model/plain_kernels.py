"""Runs models without the kernels of other packages, which accept only tensors of a GPU, and without downloaded ones.

If such packages (flash-linear-attention, causal-conv1d, mamba-ssm) are installed, Transformers calls them on any
device. Only for an export does it compute the same in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Final, final

import torch
from transformers.integrations import hub_kernels

NOTHING_DOWNLOADED: Final = {"use_kernels": False}
"""What `from_pretrained` has to be given, so that a whole model computes what its blocks do alone.

By default, Transformers 5.25 and later replace parts of a model on a GPU by code that they download from the Hub.
"""

_ASKED = "is_torchdynamo_exporting"
"""The function that Transformers asks before it calls these kernels; in that module it is used for nothing else."""


@contextmanager
def plain_kernels(device: torch.device) -> Iterator[None]:
    """A context in which models run as if these packages were not installed, if they do not support the device.

    Other threads, which may run a model on a GPU, are not affected.
    """
    if device.type not in ("cpu", "meta"):
        yield
        return
    try:
        _ANSWER.begin()
        yield
    finally:
        _ANSWER.end()


@final
class _Answer:
    """Replaces the function that Transformers asks, as long as any thread is in such a context."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._threads: list[int] = []  # one entry for each context that a thread is in
        self._plain: Callable[[], bool] = bool

    def begin(self) -> None:
        with self._lock:
            if not self._threads:
                self._plain = getattr(hub_kernels, _ASKED, bool)
            self._threads.append(get_ident())
            setattr(hub_kernels, _ASKED, self)

    def end(self) -> None:
        with self._lock:
            if get_ident() in self._threads:  # not if an interrupt came before `begin` had finished
                self._threads.remove(get_ident())
                if not self._threads:
                    setattr(hub_kernels, _ASKED, self._plain)

    def __call__(self) -> bool:
        return get_ident() in self._threads or self._plain()


_ANSWER = _Answer()
