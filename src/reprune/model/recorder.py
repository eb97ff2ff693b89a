"""Runs a model's own forward with recorders in place of its blocks, loading weights outside them when needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.forms import Beside
from reprune.model.without_weights import zeros_without_memory

Fill = Callable[[str, nn.Module, Tensor | None], None]
"""Gives the parameters of a module outside the blocks: (module name, module, token ids if it looks them up)."""

Saw = Callable[[int, Tensor, Call], Any]
"""Called with a block's index, and the states and the call that reach it. It returns what the block returns, or None to
hand the states on, and may end the forward pass by `LastBlockReached`."""


@final
class _Recorder(nn.Module):
    """Stands in for a block: reports what it is given and hands on the hidden states unchanged."""

    def __init__(self, index: int, block: nn.Module, saw: Saw, returned: int, disturb: bool) -> None:
        super().__init__()
        self._index = index
        self._original = (block,)  # in a tuple, so that it is not registered as a submodule
        self._names = list(inspect.signature(block.forward).parameters)
        self._saw = saw
        self._returned = returned
        self._disturb = disturb

    @property  # type: ignore[misc]  # nobody sets it
    def __class__(self) -> type[Any]:
        """The block's class, as a model may check it before calling the block."""
        return type(self._original[0]) if "_original" in self.__dict__ else _Recorder

    def __getattr__(self, name: str) -> Any:
        # Models read attributes of their blocks, such as attention_type, before they call them.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_original" not in self.__dict__:
                raise
            return getattr(self._original[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            states, call = args[0], Call((None, *args[1:]), kwargs, 0)
        else:
            key = next((name for name in ("hidden_states", *self._names) if isinstance(kwargs.get(name), Tensor)), None)
            if key is None:
                raise UnsupportedModelError("a block is called without hidden states, so it cannot be run on its own.")
            states, call = kwargs[key], Call(args, {**kwargs, key: None}, key)
        output = self._saw(self._index, states, call)
        if output is not None:
            return output
        if self._disturb:
            states = disturbed(states)
        beside = [Beside(place) if self._returned > 0 else None for place in range(1, abs(self._returned))]
        return (states, *beside) if self._returned else states


def disturbed(states: Tensor) -> Tensor:
    """Other states than these, even where these are zero."""
    return 1.25 * states + 1


def stop(*_: Any) -> None:
    """A hook that ends a forward pass."""
    raise LastBlockReached


class LastBlockReached(Exception):
    """Ends a forward pass when the last recorder has been called; what would follow is not run."""


@contextmanager
def recorders(blocks: nn.ModuleList, saw: Saw, returned: int, disturb: bool = False) -> Iterator[None]:
    """Within this context recorders stand in for blocks.

    Args:
        blocks: the model's list of blocks, restored afterwards.
        saw: called with what reaches each block.
        returned: what the blocks return: 0 for the states, n for a tuple of length n that begins with the states and
            goes on with placeholders, -n for one that goes on with None.
        disturb: have them hand on other states than they are given.
    """
    originals = list(blocks)
    for index, block in enumerate(originals):
        blocks[index] = _Recorder(index, block, saw, returned, disturb)
    try:
        yield
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


def is_outside(path: str, inside: tuple[str, ...]) -> bool:
    """Whether the module at `path` lies outside all modules at `inside`."""
    return not any(f"{path}.".startswith(f"{one}.") for one in inside)


def looks_up(module: nn.Module, embedding: nn.Module) -> bool:
    """Whether a module looks up token ids in a table: the embedding, and others of its class that are not smaller.

    Such tables hold an embedding of each token for each block, for example. Smaller ones may be of positions.
    """
    if isinstance(module, nn.Embedding) and isinstance(embedding, nn.Embedding) and type(module) is type(embedding):
        return module.weight.numel() >= embedding.weight.numel()
    return module is embedding


@contextmanager
def filling(model: Any, inside: tuple[str, ...], fill: Fill, ids: Tensor, early: bool) -> Iterator[None]:
    """Within this context the weights of each module outside some lists of blocks are filled in just before it runs.

    Of tables that token ids are looked up in, only these ids' rows are. The embedding's are filled in at the start, as
    some models read them before they run it. With `early`, so are all others except the output head's.
    """
    embedding = model.get_input_embeddings()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(isinstance(one, Tensor) and one.is_meta for one in (*args, *kwargs.values())):
                raise TypeError(f"{name} is given a tensor without values, made where weights are that have none yet")
            fill(name, module, args[0] if args and looks_up(module, embedding) else None)

        return before

    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if is_outside(name, inside) and (module._parameters or module._buffers)
    ]
    try:
        for name, module in model.named_modules():
            if module is embedding and module._parameters:
                fill(name, module, ids)
            elif early and module is not model.get_output_embeddings() and is_outside(name, inside):
                fill(name, module, None)
        yield
    finally:
        for handle in handles:
            handle.remove()


def fill_with_nothing(path: str, module: nn.Module, ids: Tensor | None) -> None:
    """Give a module zeros for parameters, enough to learn the shapes of its outputs.

    They take no memory, and are the same each time: a model may decide by values what it runs.
    """
    del path, ids
    for key, parameter in list(module.named_parameters(recurse=False)):
        if parameter.is_meta:
            setattr(module, key, nn.Parameter(zeros_without_memory(tuple(parameter.shape)), requires_grad=False))
