"""Checks that processes can do one run together: a sample and a device each, the same versions and model."""

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
    """`ranks`, or this process alone; raises `InputError` if none are given but a launcher started the process."""
    if ranks is None and launched():
        raise InputError(
            f"{function}: a launcher has started this process as one of several. For one run of all of them, pass "
            "ranks=reprune.math.ranks.Together(600), or launch the command line ('torchrun -m reprune'); for a run of "
            "its own in each process, pass ranks=reprune.math.ranks.ALONE."
        )
    return ranks or ALONE


def check_ranks(recipe: Recipe, calibration: int, ranks: Ranks) -> None:
    """Raise `InputError` unless each rank can have a calibration sample and a device of its own."""
    if calibration < ranks.count:
        raise InputError(
            f"--samples: {calibration} cannot be shared out over {ranks.count} processes; start at most {calibration}."
        )
    check_devices(recipe.device, ranks)


def check_devices(device: str, ranks: Ranks) -> None:
    """Raise `InputError` unless each rank can have a device of its own."""
    if not ranks.alone and ":" in device:
        raise InputError(f"--device {device}: each of {ranks.count} processes takes a device of its own; give cuda.")


def check_versions(ranks: Ranks, *pruners: str) -> None:
    """Raise `InputError`, on all ranks, unless each has the first one's versions, also of these pruners' packages."""
    first, *others = ranks.each_tells(versions(*pruners))
    for number, own in enumerate(others, 1):
        if said := other_versions(own, first, "the first"):
            raise InputError(f"process {number} of {ranks.count} has {said}; install the same on all machines.")


def other_versions(own: Mapping[str, str], than: Mapping[str, str], whose: str) -> str:
    """The versions that differ, each followed by the other one and whose it is; empty if none do."""
    both = [(name, own.get(name, "none"), than.get(name, "none")) for name in {**own, **than}]
    return ", ".join(f"{name} {was} ({whose} {other})" for name, was, other in both if was != other)


def check_model(ranks: Ranks, model: str, folder: Path, weights: bool = True) -> None:
    """Raise `InputError`, on all ranks, unless each has the first one's model, or all of it except the weights.

    Different commits of a Hub model are accepted if all files that decide the model are the same.
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
    """Which of a model's files differ from the first process's, by their digests; empty if none do."""
    names = differing(own, first)
    said = (
        ("has a different {} than the first", names & own.keys() & first.keys()),
        ("lacks {}, which the first has", names - own.keys()),
        ("has {}, which the first lacks", names - first.keys()),
    )
    return " and ".join(how.format(" and ".join(sorted(names))) for how, names in said if names)
