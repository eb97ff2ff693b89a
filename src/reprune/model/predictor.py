"""A model's predictions from its last block's states, by its own norm, head and whatever follows them.

Logits are as wide as the vocabulary, so they are computed for a few tokens at a time and never kept. Knows no losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import final

import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError, is_expected, short
from reprune.math.slices import slices
from reprune.model.block import Precision
from reprune.model.recorder import Fill
from reprune.model.skeleton import Skeleton

LOGITS, LOGITS_OF_GPU = 2**24, 2**26
"""How many are computed at a time, on a CPU and elsewhere: 64 and 256 MiB in float32. A GPU is slow at many calls."""
_TRIED = 4  # tokens
_NEAR = 0.02  # of the largest logit: differences that rounding to half precision may make


@torch.no_grad()
def check_predicts(skeleton: Skeleton, precision: Precision, fill: Fill) -> None:
    """Raise `UnsupportedModelError` unless a model computes logits from its last block's states; reads no weight.

    `fill` gives the weights outside the blocks, without values. Raises `HalfPrecisionError` if the model computes
    logits with float32 products only.
    """
    if not isinstance(skeleton.model.get_output_embeddings(), nn.Module):
        raise UnsupportedModelError(
            f"{skeleton.name}: it has no module that computes its logits, so its blocks cannot be fitted to its "
            "predictions; leave out distill.blocks."
        )
    try:
        with precision.on(torch.device("cpu")):
            ids = skeleton.few_ids()
            skeleton.predict(ids, skeleton.record(ids, fill)[0], fill, fill)
            skeleton.release()
    except Exception as error:  # whatever a model raises
        if is_expected(error):
            raise
        raise UnsupportedModelError(
            f"{skeleton.name}: its predictions cannot be computed from its last block ({short(error)}); leave out "
            "distill.blocks."
        ) from error


@final
class Predictor:
    """From states after the last block to logits."""

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor]) -> None:
        """`run` maps states (batch, tokens, ...) and their ids (batch, tokens) to logits (batch, tokens, words)."""
        self._run = run
        self._words = 0
        self._by_token = True

    def __call__(self, states: Tensor, ids: Tensor) -> Tensor:
        """The logits (batch, tokens, words), float32, with gradients to the states.

        Args:
            states: a stream's (batch, tokens, ...), float32, on the device of the blocks.
            ids: their tokens (batch, tokens), int64, on the CPU.
        """
        return self._run(states, ids).float()

    @torch.no_grad()
    def parts(self, states: Tensor, ids: Tensor) -> Iterator[tuple[slice, slice]]:
        """Slices of samples and of tokens that cover all states, each for the logits of one call."""
        if not self._words:
            self._look_at(states, ids)
        samples, tokens = ids.shape
        at_once = max((LOGITS if states.device.type == "cpu" else LOGITS_OF_GPU) // self._words, 1)
        of_samples = slices(0, samples, max(at_once // tokens, 1))
        yield from product(of_samples, slices(0, tokens, at_once) if self._by_token else [slice(None)])

    def _look_at(self, states: Tensor, ids: Tensor) -> None:
        """Find the number of words, and whether a token's logits depend on its own states only.

        They do not if a stream has more than the text's tokens, such as prompts before or n-gram streams after them.
        """
        if states.shape[1] != ids.shape[1]:
            self._words, self._by_token = self(states[:1], ids[:1]).shape[-1], False
            return
        few = states[:1, :_TRIED], ids[:1, :_TRIED]
        together = self(*few)
        alone = torch.cat([self(few[0][:, [at]], few[1][:, [at]]) for at in range(few[1].shape[1])], dim=1)
        self._words = together.shape[-1]
        self._by_token = bool((together - alone).abs().amax() <= _NEAR * together.abs().amax())
