"""Reconstruction by Adam: gradient steps on all of a window's parameters, masks fixed (PAPER: "Setting").

A masked weight starts at zero and its gradient is set to zero, so both of Adam's moments and its step stay zero:
the zeros are exact without multiplying by the mask in the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from reprune.errors import NumericalError
from reprune.math.solver import Epoch, Fit, Problem, Solver


@final
@dataclass(frozen=True)
class Adam(Solver):
    """Adam with a learning rate that falls linearly to zero; no weight decay, no clipping.

    The loss is ||outputs - targets||^2 of the batch over the mean power of all targets, so that neither the
    hidden size nor massive activations change the scale of the gradients.
    """

    epochs: int = 10
    lr: float = 2e-4
    batch_size: int = 8
    betas: tuple[float, float] = (0.9, 0.95)
    guard: bool = True
    """Keep the state with the lowest held-out error among the start and the end of each epoch."""

    def fit(self, problem: Problem, seed: int, progress: Callable[[Epoch], None]) -> Fit:
        before = problem.errors()
        if not math.isfinite(before.calibration.normalized):
            raise NumericalError("the window's outputs are not finite before its reconstruction")
        parameters = list(problem.parameters)
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        optimizer = torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=fused)
        generator = torch.Generator().manual_seed(seed)
        power = problem.target_power() or 1.0
        best_error, kept_epoch = before.heldout.normalized, 0
        best = self._state(parameters)
        epochs: list[Epoch] = []
        batches_per_epoch = math.ceil(problem.samples / self.batch_size)
        steps, step = self.epochs * batches_per_epoch, 0
        for number in range(1, self.epochs + 1):
            total = 0.0
            for batch in torch.randperm(problem.samples, generator=generator).split(self.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * (1.0 - step / steps)
                difference = problem.outputs(batch).float() - problem.targets(batch)
                loss = difference.square().mean() / power
                optimizer.zero_grad()
                loss.backward()
                self._mask_gradients_(problem)
                optimizer.step()
                total += loss.item() * len(batch)
                step += 1
            if not math.isfinite(total):
                if not self.guard:
                    raise NumericalError(
                        f"the loss became {total} in epoch {number}; lower the learning rate (--lr, now {self.lr:g})"
                    )
                break
            heldout = problem.heldout_error()
            epochs.append(Epoch(number, total / problem.samples, heldout.relative))
            progress(epochs[-1])
            if self.guard and heldout.normalized < best_error:
                best_error, kept_epoch = heldout.normalized, number
                best = self._state(parameters)
        if not self.guard:
            return Fit(before, tuple(epochs), len(epochs))
        if kept_epoch != len(epochs) or len(epochs) < self.epochs:
            self._restore_(parameters, best)
        return Fit(before, tuple(epochs), kept_epoch)

    def _state(self, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in parameters] if self.guard else []

    @staticmethod
    @torch.no_grad()
    def _restore_(parameters: list[torch.nn.Parameter], state: list[Tensor]) -> None:
        for parameter, saved in zip(parameters, state, strict=True):
            parameter.copy_(saved)

    @staticmethod
    def _mask_gradients_(problem: Problem) -> None:
        for parameter, mask in zip(problem.parameters, problem.masks, strict=True):
            if mask is not None and parameter.grad is not None:
                parameter.grad *= mask
