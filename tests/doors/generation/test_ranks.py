"""Several processes write the same file as one, byte by byte, and end as one."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from reprune.doors.command.cli import main
from reprune.planning.generation import rounds
from tests.doors.conftest import QUICK, Cli
from tests.doors.generation.test_generate import BOUND, FLAGS, files, half_is_english, reads  # noqa: F401  # for all
from tests.engine import together
from tests.engine.quick import tensors
from tests.engine.test_ranks import TOLERANCE

GENERATE = ["generate", "llama", *FLAGS, "--samples", "24", "--device", "cpu", "--precision", "float32", "--out"]


def writing(fault: tuple[int, int] | None, *arguments: str) -> None:
    """The command line, in which a rank is killed at the beginning of a round: (rank, round)."""
    from reprune.doors.generation import generate

    rounds.language_of = reads

    def drafting(*given: Any) -> Any:
        if fault == (int(os.environ["RANK"]), given[-1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return rounds.draft(*given)

    generate.draft = drafting  # the fault
    main(arguments)


def ended(count: int, *arguments: Any) -> list[together.Ended]:
    return [rank.wait(BOUND) for rank in together.start(count, writing, *arguments)]


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "llama").symlink_to(llama)
    with pytest.MonkeyPatch.context() as there, pytest.raises(SystemExit, match="0"):
        there.chdir(folder)
        there.setattr(rounds, "language_of", reads)
        main([*GENERATE, "whole/self.jsonl", "-q"])
    return files(folder / "whole")


@pytest.mark.parametrize("count", [3])
def test_they_write_what_one_would(count: int, here: Path, whole: dict[str, bytes]) -> None:
    ranks = ended(count, None, *GENERATE, "shared/self.jsonl")
    assert [(rank.code, rank.err) for rank in ranks] == [(0, "")] * count
    assert files(here / "shared") == whole
    assert "texts      shared/self.jsonl: 24\n" in ranks[0].out
    assert {rank.out for rank in ranks[1:]} == {""}
    again = ended(count, None, *GENERATE, "shared/self.jsonl", "--seed", "1")
    assert [rank.code for rank in again] == [2] * count
    (said,) = [rank.err for rank in again if rank.err]
    assert said.startswith("error: --out shared/self.jsonl: was begun with other settings (seed 0, now 1)")


@pytest.mark.parametrize(("rank", "number", "then"), [(1, 3, 1), (0, 2, 3)])
def test_what_a_killed_one_leaves_is_gone_on_with_by_any_number(
    rank: int, number: int, then: int, here: Path, whole: dict[str, bytes]
) -> None:
    ranks = ended(2, (rank, number), *GENERATE, "cut/self.jsonl", "-q")
    assert ranks[rank].code == -signal.SIGKILL
    other = ranks[1 - rank]
    assert other.code == 1
    assert f"error: process {1 - rank} of 2 has lost the others" in other.err  # after the libraries' messages
    assert "give the same command again" in other.err
    assert not (here / "cut" / "self.manifest.json").exists()
    assert [one.code for one in ended(then, None, *GENERATE, "cut/self.jsonl", "-q")] == [0] * then
    assert files(here / "cut") == whole


OWN = [
    *("prune", "llama", *map(str, QUICK), "--self-generate", "4", "--reconstruct", "BR+GP", "-q"),
    *("--set", "self_generate.language=any", "--set", "self_generate.filters=[duplicates]"),
]


def test_two_runs_at_once_are_calibrated_on_texts_that_one_of_them_writes(here: Path) -> None:
    """Neither is refused while the other is writing them."""
    runs = [together.start(1, writing, None, *OWN, "--out", out) for out in ("a", "b")]
    assert [(rank.wait(BOUND).code, len(run)) for run in runs for rank in run] == [(0, 1)] * 2
    a, b = tensors(here / "a"), tensors(here / "b")
    assert all(tensor.equal(b[key]) for key, tensor in a.items())
    assert len(list((here.parent / "cache").rglob("self-generated.jsonl"))) == 1


def test_a_run_that_calibrates_on_its_own_texts_has_them_written_by_all(here: Path, cli: Cli) -> None:
    ranks = ended(2, None, *OWN, "--out", "two")
    assert [(rank.code, rank.err) for rank in ranks] == [(0, "")] * 2
    (written,) = (here.parent / "cache").rglob("self-generated.jsonl")
    content = written.read_bytes()
    shutil.rmtree(here.parent / "cache")
    assert cli(*OWN, "--out", "one").code == 0
    assert written.read_bytes() == content
    one, two = tensors(here / "one"), tensors(here / "two")
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert float((tensor - two[key]).norm()) <= 10 * TOLERANCE * float(tensor.norm()) + 1e-6, key
