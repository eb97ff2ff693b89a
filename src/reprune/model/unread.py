"""Weights under names that nothing reads, such as those of a model that was saved in a wrapper, and what to do then.

Knows names alone, no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_WRAPPERS = re.compile(r"\b(_orig_mod|module|base_model\.model|base_layer)\.")  # torch.compile's, DDP's, PEFT's
_OF_PEFT = re.compile(r"^base_model\.model\.|\.(base_layer|lora_[AB])\.")

FOREIGN = "are not in the format of Transformers: give the model in that format, or convert it as its makers say"
"""The end of a message about tensors with the names of another format, with what to do."""


def closest(name: str, unread: Iterable[str]) -> str | None:
    """The unread name that is closest to a parameter's, without the prefixes of wrappers; None if there are none."""
    bare = {_WRAPPERS.sub("", one): one for one in unread}
    return next((bare[one] for one in get_close_matches(name, bare, 1, 0.0)), None)


def _last(name: str) -> str:
    """The last two parts of a name: a module's name in its parent, and its parameter's."""
    return ".".join(_WRAPPERS.sub("", name).split(".")[-2:])


def wrapped(name: str, stored: Iterable[str]) -> str | None:
    """The stored name that is a parameter's name within a wrapper; None if there is none."""
    return next((one for one in stored if one != name and _WRAPPERS.sub("", one) == name), None)


def way_out(unread: str, stored: Iterable[str], name: str | None = None) -> str:
    """The end of a message: what to do about a stored name that nothing reads.

    Args:
        unread: the stored name.
        stored: all stored names.
        name: the closest parameter. If even the last parts of the two names differ, the tensors are in another format,
            such as the maker's own, in which rows may have another order too, so renaming would not be enough.
    """
    way = "rename the tensors, or save the model without its wrapper (torch.compile, DDP) with save_pretrained"
    if name is not None and _last(unread) != _last(name):
        way = f"they {FOREIGN}"
    if any(map(_OF_PEFT.search, stored)):
        way = "have PEFT merge its adapter into the model (merge_and_unload), and save that with save_pretrained"
    return f"they hold {unread}, which nothing reads: {way}"
