"""Processes do a run together only with a sample and a device each, the same versions, and the same model files."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprune.doors.processes import check_model, check_ranks, other_versions
from reprune.errors import InputError
from reprune.math.ranks import ALONE
from reprune.model.checkpoint import digests_beside
from reprune.model.snapshots import hub_commit
from reprune.planning.layers import resolve_recipe
from tests import tiny

COMMIT = "01234567" * 5


class _Two:
    """This process, and another that found another folder."""

    alone, count = False, 2

    def __init__(self, other: Path) -> None:
        self._told = [hub_commit(other), digests_beside(other)]

    def each_tells(self, told: Any) -> list[Any]:
        return [told, self._told]


def _check(name: str, first: Path, other: Path) -> None:
    ranks: Any = _Two(other)
    check_model(ranks, name, first, weights=False)


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of one commit in the caches of two machines."""
    first = tiny.save("llama", tmp_path / "one" / "snapshots" / COMMIT)
    return first, shutil.copytree(first, tmp_path / "other" / "snapshots" / COMMIT)


def _change(file: Path) -> None:
    file.write_text(file.read_text() + "\n")


def test_what_one_tokenizer_holds_is_compared_where_its_file_differs_alone(machines: tuple[Path, Path]) -> None:
    for name in ("vocab.json", "merges.txt"):
        (machines[0] / name).write_text("{}")
    _check("owner/tiny", *machines)
    (machines[1] / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"lacks tokenizer\.json, which the first has"):
        _check("owner/tiny", *machines)


def test_of_one_commit_on_both_machines_the_commit_is_no_remedy(machines: tuple[Path, Path]) -> None:
    _change(machines[1] / "tokenizer.json")
    (machines[0] / "tokenizer_config.json").unlink()
    with pytest.raises(InputError) as raised:
        _check(f"owner/tiny@{COMMIT}", *machines)
    assert str(raised.value) == (
        f"owner/tiny@{COMMIT}: process 1 of 2 has a different tokenizer.json than the first and has "
        f"tokenizer_config.json, which the first lacks, though both have commit {COMMIT}; "
        f"download it again on both machines."
    )


def test_a_commit_is_the_way_out_of_another_one_unless_the_model_is_a_link_to_it(
    machines: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = machines[1].rename(machines[1].with_name("89abcdef" * 5))
    _change(other / "tokenizer.json")
    has = "process 1 of 2 has a different tokenizer.json than the first, "
    has += f"as it has commit {other.name} and the first {COMMIT}"
    with pytest.raises(InputError, match=f"owner/tiny@main: {has}; give owner/tiny@{COMMIT}"):
        _check("owner/tiny@main", machines[0], other)
    monkeypatch.chdir(machines[0].parent)
    Path("m").symlink_to(machines[0])
    with pytest.raises(InputError, match=f"m: {has}; put the same model on all machines"):
        _check("m", machines[0], other)


@pytest.mark.parametrize(
    ("device", "count", "samples", "refused"),
    [
        ("cuda", 4, 4, False),
        ("cuda", 4, 3, True),
        ("cuda:1", 4, 8, True),
        ("cpu", 4, 8, False),
    ],
)
def test_each_process_has_a_sample_and_a_device_of_its_own(
    device: str, count: int, samples: int, refused: bool
) -> None:
    ranks: Any = SimpleNamespace(count=count, alone=False)
    recipe = resolve_recipe("m", {"calibration": ["manual"], "device": device})
    with pytest.raises(InputError) if refused else nullcontext():
        check_ranks(recipe, samples, ranks)
    check_ranks(recipe, samples, ALONE)


def test_versions_that_one_has_alone_differ_too() -> None:
    own, than = {"torch": "2.8", "same": "1", "mine": "1.0"}, {"torch": "2.9", "same": "1", "theirs": "3"}
    assert other_versions(own, than, "the first") == (
        "torch 2.8 (the first 2.9), mine 1.0 (the first none), theirs none (the first 3)"
    )
    assert other_versions(own, own, "the first") == ""
