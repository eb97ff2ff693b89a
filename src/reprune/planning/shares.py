"""Shares: how many samples each source gives in each role. Knows counts, no texts and no tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np

from reprune.errors import InputError
from reprune.planning.sources import Source, SourceSpec, find_source

Role = Literal["calibration", "heldout"]

_PART = 8  # by default, calibration samples per held-out sample


@final
@dataclass(frozen=True)
class Share:
    """`count` samples from one source, the one at `position` among the sources of its role."""

    spec: SourceSpec
    source: Source
    position: int
    role: Role
    count: int

    def generator(self, seed: int) -> np.random.Generator:
        """This share's own random numbers, so that one source's draws do not depend on another's."""
        return np.random.default_rng((seed, self.position, int(self.role == "heldout")))


def share_out(calibration: list[SourceSpec], heldout: list[SourceSpec], samples: int) -> list[Share]:
    """Decide how many samples come from each source, calibration first.

    `samples` is divided evenly among the calibration sources without a count of their own; the first ones get the
    remainder. Held-out samples are extra: without `heldout` sources, ceil(count / 8) from each calibration source.
    With them, each gives its own count; those without one share ceil(N / 8), at least one each, where N is the number
    of calibration samples.

    Raises InputError if `samples` leaves a source without any, or if a name can be no source.
    """
    counts = _counts(calibration, samples)
    if 0 in counts:
        raise InputError(
            f"samples: expected at least one for each calibration source without a count, but got {samples} "
            f"for {_free(calibration)} of them; give more samples or fewer sources"
        )
    if heldout:
        held = _counts(heldout, max(_free(heldout), heldout_part(sum(counts))))
    else:
        held = [heldout_part(count) for count in counts]
    return [
        *_shares("calibration", calibration, counts),
        *_shares("heldout", heldout or calibration, held),
    ]


def most(
    calibration: list[SourceSpec], heldout: list[SourceSpec], samples: int, first: Share, capacity: int
) -> str | None:
    """The largest setting that a source with too little text allows, in words; None if even the smallest is too large.

    `first` is the first share of that source and `capacity` the number of samples that it has. The setting is the
    source's own count if it has one, else the number of samples.
    """

    def needed(number: int) -> int:
        total, roles = samples, {"calibration": calibration, "heldout": heldout}
        if first.spec.count is not None:
            changed = list(roles[first.role])
            changed[first.position] = replace(first.spec, count=number)
            roles[first.role] = changed
        else:
            total = number
        shares = share_out(roles["calibration"], roles["heldout"], total)
        return sum(share.count for share in shares if share.source == first.source)

    least = 1 if first.spec.count is not None else max(1, _free(calibration))
    largest = least - 1 + bisect_right(range(least, (first.spec.count or samples) + 1), capacity, key=needed)
    if largest < least:
        return None
    return f"a count of {largest}" if first.spec.count is not None else f"--samples {largest}"


def _shares(role: Role, specs: list[SourceSpec], counts: list[int]) -> list[Share]:
    return [
        Share(spec, find_source(spec.name), position, role, count)
        for position, (spec, count) in enumerate(zip(specs, counts, strict=True))
    ]


def total(specs: Sequence[SourceSpec], samples: int) -> int:
    """The number of calibration samples, where sources without a count of their own share `samples`."""
    return sum(_counts(specs, samples))


def _counts(specs: Sequence[SourceSpec], shared: int) -> list[int]:
    free = [index for index, spec in enumerate(specs) if spec.count is None]
    return [
        spec.count or shared // len(free) + (free.index(index) < shared % len(free)) for index, spec in enumerate(specs)
    ]


def _free(specs: Sequence[SourceSpec]) -> int:
    return sum(spec.count is None for spec in specs)


def heldout_part(count: int) -> int:
    """The default number of held-out samples for `count` calibration samples."""
    return -(-count // _PART)
