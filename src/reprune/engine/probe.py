"""A sequence of tokens that passes through the sparse model beside the samples, by which a result can be verified.

The tokens are spread over the vocabulary by a fixed rule, so the record contains none of anyone's text.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from reprune.model.forms import Form

TOKENS = 32
"""How many are recorded. States at a token do not depend on later tokens, though perhaps on how many there are."""


@final
class Probe:
    """The tokens, and their states at the frontier."""

    def __init__(self, vocabulary: int, tokens: int) -> None:
        """`tokens` is the length of a sample, which the probe has too."""
        self.ids = (torch.arange(tokens) * 7919 % vocabulary).unsqueeze(0)  # (1, tokens), int64
        self.states = torch.empty(0)  # (1, tokens, hidden), float32

    def record(self, form: Form) -> dict[str, Any]:
        """The first `TOKENS` tokens, the root mean square of their states after the last block, and the full length.

        `form` is that of the states. The length matters where positions, and so all states, depend on it.
        """
        shown = {"ids": self.ids[0, :TOKENS].tolist(), "rms": rms(form.states(self.states)[0, :TOKENS])}
        return {**shown, "tokens": self.ids.shape[1]}


def rms(states: Tensor) -> list[float]:
    """The root mean square of each token's states (tokens, hidden), over all its streams (tokens, streams, hidden)."""
    return [float(value) for value in states.float().flatten(1).square().mean(dim=-1).sqrt()]
