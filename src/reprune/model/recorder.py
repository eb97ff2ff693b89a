"""Runs a model's own forward with recorders in place of its blocks, and the weights before them filled in as needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.forms import Beside

Fill = Callable[[str, nn.Module, Tensor | None], None]
"""Gives the parameters of a module outside the blocks: (module name, module, token ids if it embeds them)."""

Saw = Callable[[int, Tensor, Call], Any]
"""Is told of a block's number, and of the states and the call that reach it. True ends the forward pass by
`LastBlockReached`; what is neither that nor False is what the block returns."""


@final
class _Recorder(nn.Module):
    """Stands in for a block: keeps what it is given and hands the hidden states on as they are."""

    def __init__(self, index: int, block: nn.Module, saw: Saw, returned: int, disturb: bool) -> None:
        super().__init__()
        self._index = index
        self._original = (block,)  # in a tuple, so that it is no module of this one
        self._names = list(inspect.signature(block.forward).parameters)
        self._saw = saw
        self._returned = returned
        self._disturb = disturb

    @property  # type: ignore[misc]  # nobody sets it
    def __class__(self) -> type[Any]:
        """The block's, as models may ask of which class it is before they call it."""
        return type(self._original[0]) if "_original" in self.__dict__ else _Recorder

    def __getattr__(self, name: str) -> Any:
        # Models ask their blocks for such things as attention_type before they call them.
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
                raise UnsupportedModelError("a block is called without hidden states, so it cannot be run by itself.")
            states, call = kwargs[key], Call(args, {**kwargs, key: None}, key)
        said = self._saw(self._index, states, call)
        if said is True:
            raise LastBlockReached
        if said is not False:
            return said
        if self._disturb:
            states = 1.25 * states
        beside = [Beside(place) if self._returned > 0 else None for place in range(1, abs(self._returned))]
        return (states, *beside) if self._returned else states


def stop(*_: Any) -> None:
    """A hook that ends a forward pass."""
    raise LastBlockReached


class LastBlockReached(Exception):
    """Ends a forward pass when the last recorder has been called: what comes after is never run."""


@contextmanager
def recorders(blocks: nn.ModuleList, saw: Saw, returned: int, disturb: bool = False) -> Iterator[None]:
    """Have recorders stand in for blocks.

    Args:
        blocks: the model's list of them.
        saw: is told of what reaches each.
        returned: what the blocks return: the states, or a tuple of so many that begins with them; if negative, with
            None beside them.
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
    """Whether a module of that path lies outside all of these."""
    return not any(f"{path}.".startswith(f"{one}.") for one in inside)


@contextmanager
def filling(model: Any, inside: tuple[str, ...], fill: Fill, ids: Tensor, early: bool) -> Iterator[None]:
    """Have the weights of each module outside some lists of blocks filled in just before it first runs.

    Those of the embedding are there from the start, as some models look at them before they run it; `early` has all be
    there but those of the output head.
    """
    embedding = model.get_input_embeddings()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(isinstance(one, Tensor) and one.is_meta for one in (*args, *kwargs.values())):
                raise TypeError(f"{name} is given a tensor without values, made where weights are that have none yet")
            fill(name, module, args[0] if module is embedding else None)

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
    """Give a module memory without values: enough to learn the shapes of what it makes."""
    del path, ids
    for key, parameter in list(module.named_parameters(recurse=False)):
        if parameter.is_meta:
            # An embedding of gigabytes takes no memory as long as nothing is written to it.
            nothing = torch.empty if parameter.dim() == 2 else torch.zeros
            setattr(module, key, nn.Parameter(nothing(parameter.shape), requires_grad=False))
