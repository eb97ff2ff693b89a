"""Fixtures for the model floor's tests: tiny models on disk, and a whole model's states to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reprune.model.decoder import Decoder
from reprune.model.passing import Room, in_memory

from .. import tiny

SAMPLES, TOKENS = 7, 24  # more tokens than the tiny models' sliding windows hold


@pytest.fixture(scope="session")
def ids() -> Tensor:
    """Token ids (samples, tokens), with neither the whole vocabulary nor the padding among them."""
    return torch.randint(3, 200, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model, written once; tests must not change it."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tiny.save(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return get


@torch.no_grad()
def states_of(model: Any, blocks_path: str, ids: Tensor) -> list[Tensor]:
    """The states that enter a whole model's first block and leave each block, by the model's own forward."""
    states: list[Tensor] = []

    def entered(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        states.append(args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor)))

    def left(module: Any, args: tuple[Any, ...], outputs: Any) -> None:
        del module, args
        states.append(outputs[0] if isinstance(outputs, tuple) else outputs)

    blocks = model.get_submodule(blocks_path)
    handles = [blocks[0].register_forward_pre_hook(entered, with_kwargs=True)]
    handles += [block.register_forward_hook(left) for block in blocks]
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return states


def slices(samples: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, samples)) for first in range(0, samples, size)]


@torch.no_grad()
def streamed(decoder: Decoder, ids: Tensor, size: int) -> Iterator[Tensor]:
    """The same states with one block in memory at a time, in batches of `size` and a rest."""
    batches = slices(len(ids), size)
    states = torch.cat([part for _, part in decoder.embed(ids, batches)])
    yield states
    for index in range(len(decoder)):
        block = decoder.load(index)
        states = torch.cat([block.run(states[one], decoder.call(index, slice(0, len(states[one])))) for one in batches])
        yield states


def assert_same_states(found: Iterator[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    """Assert that states are equal within `tolerance` times the largest state at each point."""
    count = 0
    for count, (one, other) in enumerate(zip(found, expected, strict=True), 1):
        assert one.dtype == torch.float32
        scale = float(other.abs().max())
        assert scale > 0
        assert float((one - other.float()).abs().max()) <= tolerance * scale, f"after {count - 1} blocks"
    assert count == len(expected)


def embedded(decoder: Decoder, ids: Tensor, size: int = 3, room: Room = in_memory) -> Tensor:
    return torch.cat([states for _, states in decoder.embed(ids, slices(len(ids), size), room)])
