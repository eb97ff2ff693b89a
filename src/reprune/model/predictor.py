"""What a model predicts from its last block's states: its own norm, head and whatever follows them, some at a time.

Logits are as wide as the vocabulary, so they are made of a few tokens at a time and never kept. Knows no losses.
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

LOGITS = 2**24  # at a time: 64 MiB in float32
_TRIED = 4  # tokens
_NEAR = 0.02  # of the largest logit: what rounding of half precision may do


@torch.no_grad()
def check_predicts(skeleton: Skeleton, precision: Precision, fill: Fill) -> None:
    """Raise `UnsupportedModelError` unless a model makes logits of its last block's states; no weight is read.

    `fill` gives the weights outside the blocks, without values. Raises `HalfPrecisionError` where it makes them with
    products in float32 only.
    """
    if not isinstance(skeleton.model.get_output_embeddings(), nn.Module):
        raise UnsupportedModelError(
            f"{skeleton.name}: has no module that makes its logits, so its blocks cannot be fitted to what it "
            "predicts; leave out distill.blocks."
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
            f"{skeleton.name}: what it predicts cannot be computed from its last block ({short(error)}); leave out "
            "distill.blocks."
        ) from error


@final
class Predictor:
    """From states after the last block to logits."""

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor]) -> None:
        """`run` makes logits (batch, tokens, words) of states (batch, tokens, ...) and their ids (batch, tokens)."""
        self._run = run
        self._words = 0
        self._by_token = True

    def __call__(self, states: Tensor, ids: Tensor) -> Tensor:
        """The logits (batch, tokens, words), float32, with gradients to the states.

        Args:
            states: a stream's (batch, tokens, ...), float32, where blocks run.
            ids: the tokens that they are of (batch, tokens), int64, on the CPU.
        """
        return self._run(states, ids).float()

    @torch.no_grad()
    def parts(self, states: Tensor, ids: Tensor) -> Iterator[tuple[slice, slice]]:
        """The samples and the tokens of states to make logits of at a time, all of them in turn."""
        if not self._words:
            self._look_at(states, ids)
        samples, tokens = ids.shape
        at_once = max(LOGITS // self._words, 1)
        of_samples = slices(0, samples, max(at_once // tokens, 1))
        yield from product(of_samples, slices(0, tokens, at_once) if self._by_token else [slice(None)])

    def _look_at(self, states: Tensor, ids: Tensor) -> None:
        """Learn how many words there are, and whether a token's logits depend on its own states alone.

        They do not where a stream has more than the text's tokens: prompts before them, or streams of n-grams behind.
        """
        if states.shape[1] != ids.shape[1]:
            self._words, self._by_token = self(states[:1], ids[:1]).shape[-1], False
            return
        few = states[:1, :_TRIED], ids[:1, :_TRIED]
        together = self(*few)
        alone = torch.cat([self(few[0][:, [at]], few[1][:, [at]]) for at in range(few[1].shape[1])], dim=1)
        self._words = together.shape[-1]
        self._by_token = bool((together - alone).abs().amax() <= _NEAR * together.abs().amax())
