"""Weights under names that nothing reads, as those of a model that was saved within a wrapper: what to do about them.

Knows names alone, no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_WRAPPERS = re.compile(r"\b(_orig_mod|module|base_model\.model|base_layer)\.")  # torch.compile's, DDP's, PEFT's
_OF_PEFT = re.compile(r"^base_model\.model\.|\.(base_layer|lora_[AB])\.")

FOREIGN = "are not in the format of Transformers: give the model in that, or convert it by what its makers say"
"""Of tensors that go by names of another format, and what to do."""


def closest(name: str, unread: Iterable[str]) -> str | None:
    """Of names that nothing reads the one that comes closest to a parameter's, whatever it is wrapped in."""
    bare = {_WRAPPERS.sub("", one): one for one in unread}
    return next((bare[one] for one in get_close_matches(name, bare, 1, 0.0)), None)


def _last(name: str) -> str:
    """What a matrix is called in its module."""
    return ".".join(_WRAPPERS.sub("", name).split(".")[-2:])


def wrapped(name: str, stored: Iterable[str]) -> str | None:
    """The name that a parameter has within a wrapper, where one that is stored is such a name."""
    return next((one for one in stored if one != name and _WRAPPERS.sub("", one) == name), None)


def way_out(unread: str, stored: Iterable[str], name: str | None = None) -> str:
    """What to do where nothing reads a name, to end a message.

    Args:
        stored: all names there.
        name: the parameter that comes closest. Where a matrix has a name of its own in another format, as in a maker's,
            its rows may have another order, too: to rename it is not enough.
    """
    way = "rename the tensors, or save what is wrapped (by torch.compile or DDP) with save_pretrained"
    if name is not None and _last(unread) != _last(name):
        way = f"they {FOREIGN}"
    if any(map(_OF_PEFT.search, stored)):
        way = "have PEFT merge what it has added into the model (merge_and_unload), and save that with save_pretrained"
    return f"they hold {unread}, which nothing reads: {way}"
