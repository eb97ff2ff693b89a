"""One decoder block with its weights: runs on hidden states, with the arguments that its model gave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.model.linears import Linear, find_linears


@dataclass(frozen=True)
class Call:
    """What a model passes to one of its blocks beside the hidden states."""

    args: tuple[Any, ...]  # all positional arguments; the hidden states' place holds None
    kwargs: dict[str, Any]  # all keyword arguments; the hidden states' place holds None
    states: int | str  # the position or the keyword of the hidden states

    def bind(self, states: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the hidden states in their place."""
        if isinstance(self.states, str):
            return self.args, {**self.kwargs, self.states: states}
        return (*self.args[: self.states], states, *self.args[self.states + 1 :]), self.kwargs


@dataclass(frozen=True)
class Precision:
    """In which dtype a block's products are computed; weights, sums and hidden states stay float32."""

    products: torch.dtype = torch.float32

    def on(self, device: torch.device) -> AbstractContextManager[None]:
        if self.products == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.products)


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a block that read the very same inputs."""

    linears: tuple[Linear, ...]
    once: bool = True  # False for a linear, then alone in its group, that runs several times in a pass

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(linear.name for linear in self.linears)

    @property
    def columns(self) -> int:
        return self.linears[0].shape[1]


class _Reached(Exception):
    """Ends the run of a block at a linear."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs


@final
class Block:
    """A block in memory, float32, in evaluation mode (no dropout)."""

    def __init__(self, index: int, module: nn.Module, device: torch.device, precision: Precision) -> None:
        self.index = index
        self.module = module
        self.device = device
        self.precision = precision
        self.linears = find_linears(module)

    def run(self, states: Tensor, call: Call) -> Tensor:
        """Map hidden states (batch, tokens, hidden) through the block; float32 in and out."""
        args, kwargs = call.bind(states)
        with self.precision.on(self.device):
            outputs = self.module(*args, **kwargs)
        # Transformers 5 returns the states, earlier releases and many remote models a tuple that begins with them.
        outputs = outputs[0] if isinstance(outputs, tuple | list) else outputs
        assert isinstance(outputs, Tensor)
        return outputs.float()

    @contextmanager
    def watch(self, saw: Callable[[Linear, Tensor], None], linears: Sequence[Linear] | None = None) -> Iterator[None]:
        """Call `saw(linear, inputs)` whenever one of these linears of the block, or any, is run within this context."""
        handles = [
            linear.module.register_forward_pre_hook(lambda _, args, linear=linear: saw(linear, args[0]))
            for linear in (self.linears if linears is None else linears)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def inputs_of(self, linear: Linear, states: Tensor, call: Call) -> Tensor:
        """What reaches a linear when it first runs, (..., columns); the block is run no further than to there."""

        def saw(_: Linear, inputs: Tensor) -> None:
            raise _Reached(inputs)

        try:
            with self.watch(saw, [linear]):
                self.run(states, call)
        except _Reached as reached:
            return reached.inputs
        raise LookupError(f"the linear {linear.name} never runs")

    @torch.no_grad()
    def groups(self, states: Tensor, call: Call) -> list[LinearGroup]:
        """The linear groups, in the order in which the block runs them: linears that read the very same tensor.

        A linear that runs more than once is a group of its own; one that never runs is in no group.
        """
        seen: list[tuple[Tensor, list[Linear]]] = []  # holding the tensors keeps their identities apart
        runs: dict[str, int] = {}

        def saw(linear: Linear, inputs: Tensor) -> None:
            runs[linear.name] = runs.get(linear.name, 0) + 1
            for tensor, linears in seen:
                if _same(tensor, inputs):
                    linears.append(linear)
                    return
            seen.append((inputs, [linear]))

        with self.watch(saw):
            self.run(states, call)
        shared = [tuple(one for one in linears if runs[one.name] == 1) for _, linears in seen]
        repeated = [linear for linear in self.linears if runs.get(linear.name, 0) > 1]
        return [LinearGroup(linears) for linears in shared if linears] + [
            LinearGroup((linear,), once=False) for linear in repeated
        ]


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors that are both alive are one and the same data."""
    if first is second:
        return True
    return (
        first.device.type != "meta"
        and first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
    )
