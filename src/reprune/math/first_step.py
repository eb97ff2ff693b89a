"""How long a window's steps may be: the first one is halved until it keeps the held-out error in bounds.

A learning rate that suits one window ruins another. Weights that were fitted before are near their best, and Adam's
first steps, which are as long as the rate whatever the gradient, throw them back. A single step in Adam's direction
shows this, and costs no more than measuring the held-out error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reprune.math.reconstruction_error import Error

TOLERANCE = 1.1
"""The most that the first step may multiply the held-out error by: later steps make up for that much."""
SHORTEST = 1 / 64
"""The step is never shortened to less than this share."""


@torch.no_grad()
def shorten_(
    parameters: Sequence[nn.Parameter], start: Sequence[Tensor], before: Error, heldout: Callable[[], Error]
) -> float:
    """Halve the step that parameters have taken until the held-out error is within `TOLERANCE`.

    Args:
        parameters: their values after the step; changed in place.
        start: their values before the step.
        before: the held-out error at `start`.
        heldout: measures the held-out error at the parameters' current values.

    Returns:
        The share of the step that is left.
    """
    scale = 1.0
    while scale > SHORTEST and not heldout().judged <= TOLERANCE * before.judged:
        scale /= 2
        for parameter, origin in zip(parameters, start, strict=True):
            parameter.copy_((parameter + origin) / 2)
    return scale


@torch.no_grad()
def retreat_(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], share: float) -> None:
    """Take back all but a share of the step from `start`; the parameters are changed in place."""
    if share < 1:
        for parameter, origin in zip(parameters, start, strict=True):
            parameter.copy_(torch.lerp(origin, parameter, share))
