"""Records which experts a block's tokens are routed to in one model, and repeats it in another.

Architectures choose experts by their highest scores (`torch.topk`), in one or several steps. The outcome of each choice
is recorded, in the order in which the block makes them. Where they are repeated, the scores are the model's own and the
choices are the recorded ones. PhiMoE calls `max` instead, so nothing is recorded or repeated there, and a run says so.
Nor are choices that are not made for all tokens at once, such as those of an indexer that goes token by token (Qwen4).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@final
class Routes:
    """The choices that a block makes on all samples."""

    def __init__(self) -> None:
        self._choices: list[list[Tensor]] = []  # for each choice, by batch: (samples, tokens, ...), int32, on the CPU

    @property
    def found(self) -> bool:
        """Whether any choice was recorded."""
        return bool(self._choices)

    def recording(self, samples: int, tokens: int) -> TorchFunctionMode:
        """While it is entered, record the choices for the next `samples` samples, of `tokens` tokens each."""
        return _Recording(self._choices, samples, tokens)

    def repeating(self, samples: Tensor) -> TorchFunctionMode:
        """While it is entered, a block makes the choices that were recorded for these samples."""
        for batches in self._choices:
            if len(batches) > 1:  # joined only once
                batches[:] = [torch.cat(batches)]
        return _Repeating([whole[samples] for (whole,) in self._choices])


@final
class _Recording(TorchFunctionMode):
    def __init__(self, choices: list[list[Tensor]], samples: int, tokens: int) -> None:
        super().__init__()
        self._choices, self._samples, self._tokens, self._number = choices, samples, tokens, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "topk" and _of_tokens(found.indices, self._samples, self._tokens):
            if self._number == len(self._choices):
                self._choices.append([])
            kept = found.indices.reshape(self._samples, self._tokens, -1).to("cpu", torch.int32)
            self._choices[self._number].append(kept)
            self._number += 1
        return found


@final
class _Repeating(TorchFunctionMode):
    def __init__(self, choices: list[Tensor]) -> None:
        super().__init__()
        self._choices, self._number = choices, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") != "topk" or not self._choices:
            return found
        if not _of_tokens(found.indices, *self._choices[0].shape[:2]):
            return found
        scores = args[0] if args else (kwargs or {})["input"]
        dim = args[2] if len(args) > 2 else (kwargs or {}).get("dim", -1)
        indices = self._choices[self._number].to(scores.device, torch.int64).reshape(found.indices.shape)
        self._number += 1
        return type(found)((scores.gather(dim, indices), indices))


def _of_tokens(indices: Tensor, samples: int, tokens: int) -> bool:
    """Whether the indices of a choice are a row, or several, for each token of each sample."""
    first, *others = indices.shape
    return bool(others) and (first == samples * tokens or (first == samples and tokens in others))
