"""Keeps the weights and masks of the same blocks identical in all processes that fit them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from reprune.engine.window import PrunedBlock
from reprune.errors import NumericalError
from reprune.math.ranks import Ranks


@torch.no_grad()
def agree_(blocks: Sequence[PrunedBlock], ranks: Ranks) -> None:
    """Copy the first rank's weights to all ranks; raise `NumericalError` if their masks differ."""
    if ranks.alone:
        return
    for pruned in blocks:
        ranks.copy_(list(pruned.block.module.state_dict().values()))
    own = hashlib.sha256()
    for pruned in blocks:
        for name, mask in pruned.masks.items():
            own.update(name.encode() + mask.cpu().numpy().tobytes())
    if (said := ranks.tell(own.hexdigest())) != own.hexdigest():
        raise NumericalError(
            f"blocks {[pruned.index for pruned in blocks]}: process {ranks.number} has other masks than the first "
            f"({own.hexdigest()[:8]}, not {said[:8]}); this is a bug in reprune, please report it"
        )
