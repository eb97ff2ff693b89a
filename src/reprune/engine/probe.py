"""A sequence of tokens that goes through the sparse model beside the samples, so that a result can be checked by it.

The tokens are spread over the vocabulary by a rule: a record that is passed on holds nothing of anyone's text.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from reprune.model.forms import Form

TOKENS = 32
"""Of them on record. A decoder's states at a token depend on none that come after it, though perhaps on how many do."""


@final
class Probe:
    """The tokens, and the states that they have come to."""

    def __init__(self, vocabulary: int, tokens: int) -> None:
        """As many tokens pass as of a sample."""
        self.ids = (torch.arange(tokens) * 7919 % vocabulary).unsqueeze(0)  # (1, tokens), int64
        self.states = torch.empty(0)  # (1, tokens, hidden), float32

    def record(self, form: Form) -> dict[str, Any]:
        """The first tokens, of each the root mean square of its states after the last block, and how many passed.

        `form` is that of the states. Where positions depend on how long a text is, states of the first tokens do too.
        """
        shown = {"ids": self.ids[0, :TOKENS].tolist(), "rms": rms(form.states(self.states)[0, :TOKENS])}
        return {**shown, "tokens": self.ids.shape[1]}


def rms(states: Tensor) -> list[float]:
    """The root mean square of each token's states (tokens, hidden), or of all its streams (tokens, streams, hidden)."""
    return [float(value) for value in states.float().flatten(1).square().mean(dim=-1).sqrt()]
