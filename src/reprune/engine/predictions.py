"""The objective of distillation: the last blocks are fitted so that the model predicts what the dense model does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from reprune.engine.frontier import Frontier
from reprune.engine.window import PrunedBlock, WindowProblem
from reprune.math.divergence import summed_divergence
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Objective
from reprune.model.predictor import Predictor


@final
class PredictionObjective(Objective):
    """Loss and error are KL(dense || sparse) of the next token's probabilities, in nats per token."""

    def __init__(
        self, frontier: Frontier, blocks: Sequence[PrunedBlock], predictor: Predictor, checkpointing: bool
    ) -> None:
        """The frontier is at the end, and has kept what enters the first of these blocks, the model's last ones."""
        assert frontier.kept is not None
        self._frontier = frontier
        self._entering = frontier.kept.student
        self._targets = frontier.dense_end
        self._window = WindowProblem(frontier, blocks, self._targets, self._entering, checkpointing=checkpointing)
        self._blocks = [pruned.block for pruned in blocks]
        self._device = self._blocks[0].device
        self._predictor = predictor
        self.parameters, self.masks, self.sized = self._window.parameters, self._window.masks, self._window.sized
        self.samples, self.ranks, self.half = self._window.samples, self._window.ranks, self._window.half

    def loss(self, samples: Tensor) -> Tensor:
        ids = self._frontier.ids[samples]
        return self._divergence(self._window.outputs(samples), self._window.targets(samples), ids) / ids.numel()

    def _divergence(self, states: Tensor, of: Tensor, ids: Tensor) -> Tensor:
        return summed_divergence(states, of, ids, self._predictor, self._predictor.parts)

    @torch.no_grad()
    def heldout_error(self) -> Error:
        total, tokens = 0.0, 0
        for batch in self._frontier.heldout_batches:
            states = self._frontier.run(self._blocks, self._entering.read(batch, self._device), batch)
            ids, of = self._frontier.ids[batch], self._targets.read(batch, self._device)
            # If squares overflow, the last norm turns the states into zeros: a uniform prediction, which can seem good.
            finite = math.isfinite(float(torch.linalg.vector_norm(states, dtype=torch.float32)))
            total += float(self._divergence(states, of, ids)) if finite else math.inf
            tokens += ids.numel()
        total, count = self.ranks.add([total, tokens])
        return Error.of_predictions(total / max(count, 1))
