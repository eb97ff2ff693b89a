"""What is said of a fit whose errors became NaN or infinite, and which the guard took back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reprune.math.solver import Failure
from reprune.model.decoder import Decoder


def failure_notes(place: str, failures: Sequence[Failure], decoder: Decoder) -> list[str]:
    """One note for each failure of a fit; `place` is what was fitted."""
    return [f"{place}: {failure}; the best state before it is kept{float16_advice(decoder)}" for failure in failures]


def float16_advice(decoder: Decoder) -> str:
    """What to do if products are in float16, as resuming would fail in the same way; empty otherwise."""
    if decoder.precision.products != torch.float16:
        return ""
    return (
        "; products are in float16, which holds nothing above 65504: start again in another folder with "
        "--set precision=bfloat16 or --set precision=float32"
    )
