"""Pruners by name: reprune's own, and those of other installed packages. Knows nothing of how they prune.

A package provides one as an entry point of the group `reprune.pruners`: a name, and a class derived from
`reprune.math.pruner.Pruner` or a function that makes one. `pruner.settings` is passed to it as keyword arguments.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch

from reprune.errors import InputError, short
from reprune.math.checked import Checked
from reprune.math.pruner import Pruner
from reprune.math.statistics import Statistics
from reprune.planning.axes import PRUNERS

GROUP = "reprune.pruners"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # it becomes part of the names of a study's folders

_FIRST_VERSIONS: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()
"""By module, its package's version when a pruner of it was first made: the imported code remains of that version."""


def known() -> tuple[str, ...]:
    """The names of all pruners: reprune's own, then those of packages in alphabetical order."""
    return PRUNERS + tuple(sorted(_brought()))


def package(name: str) -> dict[str, str]:
    """The package that provides a pruner, with its version; empty for reprune's own, and if none is installed."""
    found = () if name in PRUNERS else _brought().get(name, ())  # to look through all that is installed takes a while
    return {one.dist.name: one.dist.version for one in found if one.dist is not None}


def build(name: str, settings: Mapping[str, Any]) -> Pruner[Any]:
    """Make a pruner that a package provides.

    Raises:
        InputError: no package provides it, or several do; it cannot be imported, or does not take the settings.
    """
    found = _brought().get(name, ())
    if not found:
        raise InputError(unknown("pruner.name", name))
    if len(found) > 1:
        which = " and ".join(sorted(package(name)))
        raise InputError(f"pruner.name: the packages {which} both bring a pruner {name}; uninstall one of them.")
    if said := _outdated(found[0]):
        raise InputError(f"pruner {name}: {said}; restart Python (in a notebook, the kernel).")
    try:
        made = found[0].load()(**settings)
        statistics = made.statistics(1, torch.device("cpu")) if isinstance(made, Pruner) else None
        if isinstance(statistics, Statistics):
            int(type(statistics).size(1))  # called on the class, as reprune does before any statistics exist
    except Exception as error:  # a package's code may raise anything
        given = ", ".join(f"{key}={value!r:.80}" for key, value in settings.items())
        made_by = f"{found[0].value}({given}) of the package {_whose(found[0])}"
        raise InputError(f"pruner {name}: {made_by} cannot be used ({short(error)}).") from error
    if not isinstance(statistics, Statistics):
        wrong = f"{type(made).__name__} is not a reprune.math.pruner.Pruner"
        if isinstance(made, Pruner):
            wrong = f"its statistics are a {type(statistics).__name__}, not a reprune.math.statistics.Statistics"
        raise InputError(f"pruner {name} of the package {_whose(found[0])} cannot be used: {wrong}.")
    return Checked(name, made, repr(dict(settings)))


def unknown(place: str, name: str) -> str:
    """The message for a name at `place` that no pruner has."""
    names = known()
    near = difflib.get_close_matches(name.lower(), names, n=1)
    asked = f"; did you mean {near[0]}?" if near else "."
    return (
        f"{place}: expected {', '.join(names[:-1])} or {names[-1]}, or a pruner that an installed package brings "
        f"(got {name!r:.80}){asked}"
    )


def _brought() -> dict[str, tuple[EntryPoint, ...]]:
    """The entry points of packages' pruners by name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for one in entry_points(group=GROUP):
        if one.name not in PRUNERS and _NAME.fullmatch(one.name):
            found[one.name] = (*found.get(one.name, ()), one)
    return found


def _outdated(entry: EntryPoint) -> str | None:
    """The message for a package of which another version was installed after its module was imported; else None."""
    module = sys.modules.get(entry.module)
    if module is None or entry.dist is None:
        return None
    installed = entry.dist.version
    imported = _FIRST_VERSIONS.setdefault(module, installed)
    said = f"version {imported} of the package {_whose(entry)} is imported, but {installed} is installed now"
    return said if imported != installed else None


def _whose(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "?"
