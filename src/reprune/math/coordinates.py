"""What an optimizer moves: all weights of a window, the kept weights alone, or low-rank updates of its matrices.

In each case masked weights stay exactly zero, and the window's own forward pass is unchanged: gradients are read from
its parameters, and the optimizer's steps are written back to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self, final

import torch
from torch import Tensor, nn

from reprune.math.masking import mask_, pick, put_back_
from reprune.math.solver import Objective


class Coordinates:
    """A context manager; on exit, the window's parameters keep their values and the hooks on them are removed."""

    leaves: Sequence[nn.Parameter]
    """What the optimizer moves; float32."""
    masks: Sequence[Tensor | None]
    """For each leaf, bool and of its shape, True where it moves; None if all of it does."""
    _apart: Sequence[_Kept | _Factored] = ()
    """The links between parameters and the leaves that are not parameters themselves."""

    def pull_(self) -> None:
        """After the backward passes of a step: give the leaves their gradients."""
        for leaf, mask in zip(self.leaves, self.masks, strict=True):
            if mask is not None and leaf.grad is not None:
                mask_(leaf.grad, mask)

    def push_(self) -> None:
        """After the leaves have moved: write them to the window's parameters."""
        for one in self._apart:
            one.push_()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._apart:
            one.remove()


@final
class AllWeights(Coordinates):
    """The window's parameters themselves.

    The gradient of a masked weight is set to zero, so both of Adam's moments and its step stay zero: the zeros are
    exact without multiplying by the mask in the forward pass.
    """

    def __init__(self, problem: Objective) -> None:
        self.leaves, self.masks = problem.parameters, problem.masks


@final
class KeptWeights(Coordinates):
    """The kept weights of each masked parameter, as one vector; gradients, moments and steps exist for these alone.

    The steps are those of `AllWeights`. For a matrix of n weights, half of them kept, the weights still take 4n bytes,
    but leaf, gradient, two moments and the guard's copy take 10n instead of 16n. A parameter's gradient is reduced to
    its kept weights and freed as soon as it is computed, so at most one gradient of full size exists at a time.
    """

    def __init__(self, problem: Objective) -> None:
        self._apart: list[_Kept] = []
        self.leaves: list[nn.Parameter] = []
        for parameter, mask in zip(problem.parameters, problem.masks, strict=True):
            if mask is None:
                self.leaves.append(parameter)
            else:
                self._apart.append(_Kept(parameter, mask))
                self.leaves.append(self._apart[-1].leaf)
        self.masks = [None] * len(self.leaves)


class _Kept:
    """One masked parameter and its kept weights."""

    def __init__(self, parameter: nn.Parameter, mask: Tensor) -> None:
        self._parameter, self._mask = parameter, mask
        self.leaf = nn.Parameter(pick(parameter.detach(), mask))
        self.remove: Callable[[], None] = parameter.register_post_accumulate_grad_hook(self._pull_).remove

    @torch.no_grad()
    def _pull_(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        own = pick(parameter.grad, self._mask)
        parameter.grad = None
        self.leaf.grad = own if self.leaf.grad is None else self.leaf.grad.add_(own)

    @torch.no_grad()
    def push_(self) -> None:
        put_back_(self._parameter, self._mask, self.leaf)


@final
class LowRank(Coordinates):
    """Two factors for each matrix W: W = W0 + mask * (B A), with B (rows, rank) and A (rank, columns) (LoRA, Hu 2021).

    If a parameter holds the matrices of several experts, each has its own factors.

    B begins as zero and A as normal with variance 1 / rank. So Adam's first step, which moves each value of B by the
    learning rate, moves the values of W by as much on average: a learning rate means the same as without factors.
    A parameter that is not a matrix, or not larger than its factors, is moved itself. A matrix's gradient is turned
    into those of its factors and freed as soon as it is computed, so at most one exists at a time.
    """

    def __init__(self, problem: Objective, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._apart: list[_Factored] = []
        self.leaves: list[nn.Parameter] = []
        self.masks: list[Tensor | None] = []  # None for factors: `_Factored` applies the mask
        for parameter, mask in zip(problem.parameters, problem.masks, strict=True):
            if parameter.dim() >= 2 and rank * sum(parameter.shape[-2:]) < math.prod(parameter.shape[-2:]):
                factored = _Factored(parameter, mask, rank, generator)
                self._apart.append(factored)
                self.leaves += [factored.B, factored.A]
                self.masks += [None, None]
            else:
                self.leaves.append(parameter)
                self.masks.append(mask)


class _Factored:
    """One matrix, or those of all experts, and the two factors of its update."""

    def __init__(self, parameter: nn.Parameter, mask: Tensor | None, rank: int, generator: torch.Generator) -> None:
        *experts, rows, columns = parameter.shape
        device = parameter.device
        self._parameter, self._mask = parameter, mask
        self._start = parameter.detach().clone()
        self.B = nn.Parameter(torch.zeros(*experts, rows, rank, device=device))
        self.A = nn.Parameter((torch.randn(*experts, rank, columns, generator=generator) / rank**0.5).to(device))
        self.remove: Callable[[], None] = parameter.register_post_accumulate_grad_hook(self._pull_).remove

    @torch.no_grad()
    def _pull_(self, parameter: Tensor) -> None:
        """dL/dB = G A' and dL/dA = B' G, where G is the masked gradient of the matrix; summed over passes."""
        gradient = parameter.grad
        assert gradient is not None
        if self._mask is not None:
            mask_(gradient, self._mask)
        for leaf, own in ((self.B, gradient @ self.A.mT), (self.A, self.B.mT @ gradient)):
            leaf.grad = own if leaf.grad is None else leaf.grad + own
        parameter.grad = None

    @torch.no_grad()
    def push_(self) -> None:
        update = self.B @ self.A
        if self._mask is not None:
            mask_(update, self._mask)
        self._parameter.copy_(update.add_(self._start))
