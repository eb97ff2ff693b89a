"""Keeps a product in float32 where a model's own code asks for that, though autocast would round it.

Blocks with experts run under it: the code of many mixtures asks for that in routers, by
`F.linear(x.float(), self.weight.float())`, as which experts a token is sent to hangs on small differences of scores.
Here weights are float32 already, so autocast would not notice. (Other blocks do without: it costs time for each
operation.)
"""

from __future__ import annotations

import weakref
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CASTS = ("float", "type")  # not `to`, which is also given the dtype of the states: these are float32 here


@final
class AskedInFloat32(TorchFunctionMode):
    """While it is entered, under autocast, a linear whose weight has just been cast to float32 is computed in it."""

    def __init__(self, device: str) -> None:
        """`device` is the type of device that autocast is on for."""
        super().__init__()
        self._device = device
        self._cast: weakref.ref[Tensor] | None = None  # the last matrix that was cast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "linear" and self._cast is not None:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if self._cast() is weight:
                with torch.autocast(self._device, enabled=False):
                    return func(*args, **kwargs)
        made = func(*args, **kwargs)
        if name in _CASTS and isinstance(made, Tensor) and made.dtype == torch.float32 and made.dim() == 2:
            self._cast = weakref.ref(made)
        return made
