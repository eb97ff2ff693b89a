"""Tells which way numbers go, in words. Knows nothing of what they measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from operator import itemgetter

from reprune.doors.records.rows import known
from reprune.doors.report.rises import RISE, SLIGHT
from reprune.doors.report.text import listed


def direction(before: float | None, after: float | None) -> str | None:
    """Whether a value "falls" or "rises" by more than the share `RISE`, or "stays"; None if one is unknown."""
    if not known(before) or not known(after):
        return None
    if after > before * (1 + RISE):
        return "rises"
    return "falls" if after < before * (1 - RISE) else "stays"


def course(steps: Sequence[tuple[str, float | None]]) -> str | None:
    """How a measure goes along a ladder: "falls at every step", "falls up to BR+GP, then rises up to BR+GP+CR".

    Args:
        steps: (rung, value), from the lowest rung.

    Returns:
        Words that follow the measure's name; None if fewer than two values are known.
    """
    there = [(rung, value) for rung, value in steps if known(value)]
    if len(there) < 2:
        return None
    ways = [(direction(before, after), rung) for (_, before), (rung, after) in pairwise(there)]
    verb = {"stays": f"stays within {SLIGHT}"}
    alike = [(verb.get(str(way), way), list(found)) for way, found in groupby(ways, key=itemgetter(0))]
    if len(alike) == 1:
        where = "at every step" if len(ways) > 1 else f"from {there[0][0]} to {there[-1][0]}"
        return f"{alike[0][0]} {where}"
    return ", then ".join(f"{way} up to {here[-1][1]}" for way, here in alike)


def courses(ways: Mapping[str, str | None]) -> list[str]:
    """How several measures go, by name: those that go the same way share a phrase, as "a and b fall at every step"."""
    alike: dict[str, list[str]] = {}
    for name, way in ways.items():
        if way is not None:
            alike.setdefault(way, []).append(name)
    return [f"{listed(names)} {way if len(names) == 1 else _plural(way)}" for way, names in alike.items()]


def _plural(way: str) -> str:
    """The same of several measures: fall for falls."""
    for one, many in (("falls", "fall"), ("rises", "rise"), ("stays", "stay")):
        way = way.replace(one, many)
    return way
