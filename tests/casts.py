"""Counts how often tensors are cast to another dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """While it is entered, counts the casts of those tensors that `counts` chooses."""

    def __init__(self, counts: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.count = 0
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.count += func is torch.ops.aten._to_copy.default and self._counts(args[0])
        return func(*args, **(kwargs or {}))
