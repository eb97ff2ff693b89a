"""Which parameters of a whole model hold many matrices that tokens are multiplied by, as those of a layer's experts."""

from __future__ import annotations

from pathlib import Path

from reprune.model.block import Precision
from reprune.model.recorder import fill_with_nothing
from reprune.model.skeleton import Skeleton
from reprune.model.weightless import Weightless

_WHOLE = 8  # numbers in half precision: 16 bytes, of which PyTorch's grouped products want rows to be multiples


def stacked_parameters(folder: Path, trust_remote_code: bool) -> set[str]:
    """Their names, of those that can be multiplied by in half precision; none where its blocks are not found."""
    try:
        skeleton = Skeleton(folder, trust_remote_code)
        weightless = Weightless(skeleton, Precision(), fill_with_nothing)
        return {
            f"{skeleton.blocks_path}.{index}.{stack.parameter}"
            for index in skeleton.running
            for stack in weightless.stacks(index)
            if all(size % _WHOLE == 0 for size in stack.shape)
        }
    except Exception:  # whatever a model raises that cannot be pruned: of no concern here
        return set()
