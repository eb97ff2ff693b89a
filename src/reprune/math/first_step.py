"""How long a window's steps may be: the first one is halved until held-out data take it well.

A learning rate that suits one window ruins another: weights that were fitted before are near their best, and Adam's
first steps, which are as long as the rate whatever the gradient, throw them back. One step in the direction that
Adam takes shows it, and costs no more than a look at the held-out samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reprune.math.reconstruction_error import Error

TOLERANCE = 1.1
"""What the first step may raise the held-out error to, over that before: the steps after it take back so much."""
SHORTEST = 1 / 64
"""No step is shortened further."""


@torch.no_grad()
def shorten_(
    parameters: Sequence[nn.Parameter], start: Sequence[Tensor], before: Error, heldout: Callable[[], Error]
) -> float:
    """Halve the step that parameters have taken until it is one that held-out data take.

    Args:
        parameters: after the step; changed in place.
        start: the same before the step.
        before: the held-out error there.
        heldout: measures it where the parameters are.

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
    """Leave a share of the step that parameters have taken from `start`; they are changed in place."""
    if share < 1:
        for parameter, origin in zip(parameters, start, strict=True):
            parameter.copy_(torch.lerp(origin, parameter, share))
