"""A window in memory: its blocks with their masks, and its reconstruction as a problem for a solver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.engine.error_pair import ErrorPair
from reprune.engine.frontier import Frontier
from reprune.errors import NumericalError
from reprune.math.finite import all_finite
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Errors, Problem
from reprune.math.standardization import FeatureStatistics
from reprune.model.block import Block, LinearGroup, many_passes
from reprune.model.decoder import Decoder
from reprune.model.linears import Linear
from reprune.model.routing import Routes
from reprune.model.streams import Stream
from reprune.planning.choice import Choice

_SPARSE = 0.25
"""A matrix with at least this share of zeros that is not pruned now counts as pruned earlier.

Rounding to four bits makes up to 17 % of a matrix zero, and those zeros should be trained.
"""


@final
@dataclass
class PrunedBlock:
    """A block whose masks are chosen, or about to be."""

    block: Block
    groups: list[LinearGroup] = field(default_factory=list)  # the groups to be pruned, once they are known
    masks: dict[str, Tensor] = field(default_factory=dict)  # by linear: (rows, columns), bool, True where kept
    # By the names of a linear group: the ridge that least squares chose, or None if the pruner's weights were kept.
    ridges: dict[tuple[str, ...], float | None] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)  # by linear of an expert: how many tokens calibrated it
    routes: Routes | None = None  # the dense model's choices of experts, to be repeated; None: the block chooses

    @property
    def index(self) -> int:
        return self.block.index

    def idle(self, choice: Choice) -> list[str]:
        """The linears that were to be pruned but never ran, such as those that read images or other models."""
        return [
            linear.name
            for linear in self.block.linears
            if linear.name not in self.masks
            and linear.name not in self.block.routers
            and not choice.leaves_dense(self.index, linear.name)
        ]

    @torch.no_grad()
    def round_(self, decoder: Decoder) -> dict[str, Tensor]:
        """Round all weights to the dtypes in which they are saved, so that streams pass through what is saved.

        Returns:
            The tensors to save, under the checkpoint's names.

        Raises:
            NumericalError: a weight is NaN or infinite.
        """
        tensors, parameters = decoder.rounded(self.block)
        state = self.block.module.state_dict()
        for name, tensor in parameters.items():
            if tensor.is_floating_point() and not all_finite(tensor):
                raise NumericalError(f"block {self.index}: {name} holds NaN or infinite values; it is not saved")
            state[name].copy_(tensor)
        return tensors


@final
class WindowProblem(Problem):
    """The reconstruction of a window's blocks, from the student's states to the targets."""

    def __init__(
        self,
        frontier: Frontier,
        blocks: Sequence[PrunedBlock],
        targets: Stream,
        entering: Stream | None = None,
        entering_last: Stream | None = None,
        checkpointing: bool = False,
        features: FeatureStatistics | None = None,
        standardized: bool = False,
        teacher_forcing: float = 0.0,
    ) -> None:
        """
        Args:
            blocks, targets: the blocks to fit, and what the last of them should put out.
            entering: the states that enter the first block; by default the student's at the frontier.
            entering_last: the states that enter the last block, with the blocks before it as they are; None: unknown.
            checkpointing: keep only what enters each block for the backward pass, and recompute the rest.
            features: statistics of the calibration targets, by which errors are also standardized; None if nothing is
                fitted to these.
            standardized: whether the loss is of standardized differences.
            teacher_forcing: the dense model's share in the states that enter during the fit; errors are measured on
                the student's states alone.
        """
        self._frontier = frontier
        self._pruned = blocks
        self._blocks = [pruned.block for pruned in blocks]
        self._targets = targets
        self._features = features
        self._scale = features and features.scale
        self._entering = entering or frontier.student
        self._entering_last = entering_last
        self._checkpointing = checkpointing
        self._teacher_forcing = teacher_forcing
        self.scale = self._scale if standardized else None
        self._device = self._blocks[0].device
        self.samples = frontier.samples
        self.ranks = frontier.ranks
        self.half = self._blocks[0].precision.products == torch.float16
        masks: dict[int, Tensor] = {}
        for pruned in blocks:
            for linear in pruned.block.linears:
                mask = pruned.masks.get(linear.name)
                if mask is None and (mask := pruned_before(linear)) is None:
                    continue
                if linear.is_whole:
                    masks[id(linear.parameter)] = mask
                else:
                    whole = masks.setdefault(id(linear.parameter), torch.ones_like(linear.parameter, dtype=torch.bool))
                    linear.of_layout(whole).copy_(mask)
        self.parameters: list[nn.Parameter] = [
            parameter
            for block in self._blocks
            if frontier.runs(block.index)
            for parameter in block.module.parameters()
            if parameter.is_floating_point()
        ]
        self.masks = [masks.get(id(parameter)) for parameter in self.parameters]
        now = [linear for pruned in blocks for linear in pruned.block.linears if linear.name in pruned.masks]
        linears = now or [linear for block in self._blocks for linear in block.linears]
        sized = {id(linear.parameter) for linear in linears}
        self.sized = [id(parameter) in sized for parameter in self.parameters]

    def outputs(self, samples: Tensor) -> Tensor:
        states = self._entering.read(samples, self._device)
        if self._teacher_forcing:
            dense = self._frontier.entering(self._blocks[0], samples)
            states = self._frontier.mixed(states, dense, self._teacher_forcing)
        with torch.enable_grad():
            states = self._frontier.run(
                self._blocks, states, samples, self._checkpointing, partial(self._routing, samples)
            )
            return self._frontier.measured(states)

    def _routing(self, samples: Tensor, index: int) -> AbstractContextManager[Any] | None:
        routes = next(pruned.routes for pruned in self._pruned if pruned.index == index)
        return None if routes is None else routes.repeating(samples)

    def targets(self, samples: Tensor) -> Tensor:
        return self._frontier.measured(self._targets.read(samples, self._device))

    def errors_before(self) -> Errors:
        if self._entering_last is not None:
            return self._measure(self._frontier.batches, self._blocks[-1:], self._entering_last)
        return self._measure(self._frontier.batches, self._blocks, self._entering)

    def heldout_error(self) -> Error:
        return self._measure(self._frontier.heldout_batches, self._blocks, self._entering).heldout

    @torch.no_grad()
    def _measure(self, batches: Sequence[slice], blocks: Sequence[Block], entering: Stream) -> Errors:
        """The errors of some samples after these blocks, which are the window's last, on the states that enter them."""
        pair = ErrorPair(self._frontier.calibration, self._scale)
        with many_passes(blocks):
            for batch in batches:
                states = self._frontier.run(blocks, entering.read(batch, self._device), batch)
                targets = self._targets.read(batch, self._device)
                pair.update(batch, self._frontier.measured(states), self._frontier.measured(targets))
        return pair.errors(self.ranks)

    def target_power(self) -> float:
        assert self._features is not None
        return self._features.power

    @contextmanager
    def last_part(self) -> Iterator[Problem | None]:
        if len(self._pruned) == 1 or not self._frontier.runs(self._pruned[-1].index):
            yield None
            return
        at_hand = self._entering_last
        with nullcontext(at_hand) if at_hand is not None else self._frontier.through(self._blocks[:-1]) as entering:
            yield WindowProblem(
                self._frontier,
                self._pruned[-1:],
                self._targets,
                entering,
                checkpointing=self._checkpointing,
                features=self._features,
                standardized=self.scale is not None,
                teacher_forcing=self._teacher_forcing,
            )


def pruned_before(linear: Linear) -> Tensor | None:
    """The mask of a matrix that was pruned by an earlier run and so keeps its zeros, or None if it was not."""
    kept = linear.matrix() != 0
    return kept if int(kept.count_nonzero()) <= (1 - _SPARSE) * kept.numel() else None
