"""What processes need to do one run together: a sample and a device each, the same versions, and the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reprune.engine.record import versions
from reprune.errors import InputError
from reprune.math.launch import launched
from reprune.math.ranks import ALONE, Ranks
from reprune.model.checkpoint import Checkpoint, differing, digests_beside
from reprune.model.locate import by_commit
from reprune.model.snapshots import hub_commit
from reprune.planning.recipe import Recipe


def ranks_or_alone(ranks: Ranks | None, function: str) -> Ranks:
    """The processes that do a run; none given, this one. Raises `InputError` where that would be one of several."""
    if ranks is None and launched():
        raise InputError(
            f"{function}: a launcher has started this process as one of several. To do one run together, pass ranks, a "
            "reprune.math.ranks.Together(600), or start the command by it ('torchrun -m reprune'); for a run of its "
            "own in each process pass reprune.math.ranks.ALONE."
        )
    return ranks or ALONE


def check_ranks(recipe: Recipe, calibration: int, ranks: Ranks) -> None:
    """Raise `InputError` unless so many samples can be shared out over ranks, and devices too."""
    if calibration < ranks.count:
        raise InputError(
            f"--samples: {calibration} cannot be shared out over {ranks.count} processes; start as many at most."
        )
    check_devices(recipe.device, ranks)


def check_devices(device: str, ranks: Ranks) -> None:
    """Raise `InputError` unless each rank can have a device of its own."""
    if not ranks.alone and ":" in device:
        raise InputError(f"--device {device}: each of {ranks.count} processes takes a device of its own; give cuda.")


def check_versions(ranks: Ranks, *pruners: str) -> None:
    """Raise `InputError`, on all ranks, unless each has the versions of the first, with these pruners' packages."""
    first, *others = ranks.each_tells(versions(*pruners))
    for number, own in enumerate(others, 1):
        if said := other_versions(own, first, "the first"):
            raise InputError(f"process {number} of {ranks.count} has {said}; install the same on all machines.")


def other_versions(own: Mapping[str, str], than: Mapping[str, str], whose: str) -> str:
    """Which versions differ, each with the other beside it and whose that is; empty where none do."""
    both = [(name, own.get(name, "none"), than.get(name, "none")) for name in {**own, **than}]
    return ", ".join(f"{name} {was} ({whose} {other})" for name, was, other in both if was != other)


def check_model(ranks: Ranks, model: str, folder: Path, weights: bool = True) -> None:
    """Raise `InputError`, on all ranks, unless each has found the model of the first, or all of it but its weights.

    Commits of a Hub's that differ in nothing that decides the model are the same.
    """
    if ranks.alone:
        return
    known = digests_beside(folder) | ({"fingerprint": Checkpoint(folder).fingerprint()} if weights else {})
    (commit, first), *others = ranks.each_tells([hub_commit(folder), known])
    for number, (other, own) in enumerate(others, 1):
        if not (what := _other_files(own, first)):
            continue
        why, way = "", "put the same model on all machines"
        given = by_commit(model, commit)
        if commit is not None and other == commit:
            why = f", though both have commit {commit}"
            way = "download it again on both machines" if given else way
        elif other or commit:
            why = f", as it has commit {other or 'none'} and the first {commit or 'none'}"
            way = f"give {given}" if given else way
        raise InputError(f"{model}: process {number} of {ranks.count} {what}{why}; {way}.")


def _other_files(own: Mapping[str, str], first: Mapping[str, str]) -> str:
    """Which files of a model differ from the first process's, by their digests; empty where none do."""
    names = differing(own, first)
    said = (
        ("has another {} than the first", names & own.keys() & first.keys()),
        ("lacks {}, which the first has", names - own.keys()),
        ("has {}, which the first lacks", names - first.keys()),
    )
    return " and ".join(how.format(" and ".join(sorted(names))) for how, names in said if names)
