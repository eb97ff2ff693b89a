"""Writes numbers and lists as text for reports. Knows nothing of what they tell."""

from __future__ import annotations

from collections.abc import Sequence

from reprune.doors.formats import clock, percent, size
from reprune.doors.records.rows import known
from reprune.planning.schedule import ranges

NONE = "\N{EN DASH}"
"""In place of what was not measured."""

_MINUS = "\N{MINUS SIGN}"


def share(value: float | None) -> str:
    """0.0315 as 3.15 %, with three digits; two for small values."""
    if not known(value):
        return NONE
    return unbroken(f"{100 * value:.2g} %" if 0 < abs(value) < 1e-3 else percent(value))


def change(before: float | None, after: float | None) -> str:
    """How far `after` is above or below `before`, in percent of it, with its sign."""
    if not known(before) or not known(after) or before <= 0:
        return NONE
    value = 100.0 * (after / before - 1.0)
    digits = f"{abs(value):.1f}"
    sign = "" if float(digits) == 0 else "+" if value > 0 else _MINUS
    return unbroken(f"{sign}{digits} %")


def number(value: float | None) -> str:
    """Four digits, with thousands separated."""
    if not known(value):
        return NONE if value is None else "not finite"
    if value and abs(value) < 1e-3:
        return f"{value:.2e}".replace("-", _MINUS)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def two_places(value: float | None) -> str:
    """A perplexity, as 43.16, with thousands separated."""
    if not known(value):
        return NONE if value is None else "not finite"
    return f"{value:,.2f}"


def duration(seconds: float | None) -> str:
    """12.3 s, 4:05 or 2:10:00 (hours:minutes:seconds)."""
    return unbroken(clock(seconds)) if known(seconds) else NONE


def memory(count: float | None) -> str:
    """Bytes in decimal units."""
    return unbroken(size(count)) if known(count) else NONE


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def numbered(one: str, numbers: Sequence[int]) -> str:
    """window 3; windows 3 and 5; windows 3-7 and 9."""
    parts = [str(number) for number in numbers] if len(numbers) == 2 else ranges(numbers).split(", ")
    return f"{one}{'' if len(numbers) == 1 else 's'} {listed(parts)}"


def unbroken(text: str) -> str:
    """`text` with no-break spaces, so that it stays on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
