"""Parts of models without the kernels that other packages have for them, which take tensors of a GPU alone.

Transformers calls such packages (flash-linear-attention, causal-conv1d, mamba-ssm) wherever they are installed, on any
device. But not for an export, where it computes the same in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import final

import torch
from transformers.integrations import hub_kernels

_ASKED = "is_torchdynamo_exporting"
"""What they are chosen by; only they are, by the name in that module."""


@contextmanager
def plain_kernels(device: torch.device) -> Iterator[None]:
    """A context in which a model runs on this device as if they were not installed, if it is one that they refuse.

    Other threads, which may run a model on a GPU, are none of its concern.
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
    """Stands in Transformers for what it asks, for as long as a thread is in such a context."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._threads: list[int] = []  # by the contexts that they are in
        self._plain: Callable[[], bool] = bool

    def begin(self) -> None:
        with self._lock:
            if not self._threads:
                self._plain = getattr(hub_kernels, _ASKED, bool)
            self._threads.append(get_ident())
            setattr(hub_kernels, _ASKED, self)

    def end(self) -> None:
        with self._lock:
            if get_ident() in self._threads:  # not where an interrupt came before
                self._threads.remove(get_ident())
                if not self._threads:
                    setattr(hub_kernels, _ASKED, self._plain)

    def __call__(self) -> bool:
        return get_ident() in self._threads or self._plain()


_ANSWER = _Answer()
