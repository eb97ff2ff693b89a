"""What a learning rate is beside the weights it moves: Adam's steps are of its size, whatever the gradients are."""

from __future__ import annotations

import math

import torch

from reprune.math.solver import Objective


def kept_rms(problem: Objective) -> float:
    """The root mean square of the kept weights of a problem's matrices, all together that are pruned in this run.

    Where none is it is that of all its linears, and where there are none of all its parameters.
    """
    pairs = list(zip(problem.parameters, problem.masks, strict=True))
    sized = problem.sized or [mask is not None for mask in problem.masks]
    counted = [pair for pair, counts in zip(pairs, sized, strict=True) if counts] or pairs
    power = sum(float(torch.linalg.vector_norm(parameter.detach())) ** 2 for parameter, _ in counted)
    kept = sum(parameter.numel() if mask is None else int(mask.sum()) for parameter, mask in counted)
    return math.sqrt(power / max(kept, 1))
