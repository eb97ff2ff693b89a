"""Converts blocks that a window leaves open to tensors by name, and back. Knows nothing of where these are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reprune.engine.window import PrunedBlock
from reprune.model.decoder import Decoder


def tensors_of(blocks: Sequence[PrunedBlock]) -> dict[str, Tensor]:
    """The float32 weights and the masks of open blocks, and how many tokens calibrated each expert's linears."""
    tensors: dict[str, Tensor] = {}
    for pruned in blocks:
        for name, tensor in pruned.block.module.state_dict().items():
            tensors[f"{pruned.index}/weight/{name}"] = tensor
        for name, mask in pruned.masks.items():
            tensors[f"{pruned.index}/mask/{name}"] = mask
        for name, tokens in pruned.tokens.items():
            tensors[f"{pruned.index}/tokens/{name}"] = torch.tensor(tokens)
    return tensors


def open_blocks(tensors: Mapping[str, Tensor], decoder: Decoder) -> list[PrunedBlock]:
    """The blocks that a window left open, as they were in memory, from the tensors of `tensors_of`."""
    blocks = []
    for index in sorted({int(name.split("/", 1)[0]) for name in tensors}):
        pruned = PrunedBlock(decoder.load(index))
        state = pruned.block.module.state_dict()
        for key, tensor in tensors.items():
            number, kind, name = key.split("/", 2)
            if int(number) != index:
                continue
            if kind == "mask":
                pruned.masks[name] = tensor.to(decoder.device)
            elif kind == "tokens":
                pruned.tokens[name] = int(tensor)
            else:
                with torch.no_grad():
                    state[name].copy_(tensor)
        blocks.append(pruned)
    return blocks
