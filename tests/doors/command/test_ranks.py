"""A command that runs as several processes ends as one: with one message, in a bounded time, and can go on."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import reprune
from reprune.engine.ledger import Ledger
from tests.damage import flip_bit
from tests.doors.command.conftest import CR
from tests.doors.conftest import Cli
from tests.engine import together
from tests.engine.quick import tensors
from tests.engine.test_ranks import TOLERANCE
from tests.engine.together import Ended, Rank

FAULTY = str(Path(__file__).parent / "faulty.py")
BOUND = 60
"""Seconds within which all processes must end."""


def _faulty(count: int, *arguments: str) -> list[Rank]:
    return together.start(count, together.script, FAULTY, *arguments)


def _commands(count: int, *arguments: str) -> list[Rank]:
    return together.start(count, together.command, *arguments)


def _ended(ranks: list[Rank], stopped: int | None = None) -> list[Ended]:
    """How each process ended; the stopped one is killed after the others have ended."""
    found = {number: rank.wait(BOUND) for number, rank in enumerate(ranks) if number != stopped}
    if stopped is not None:
        ranks[stopped].send(signal.SIGKILL)
        found[stopped] = ranks[stopped].wait(BOUND)
    return [found[number] for number in range(len(ranks))]


def _messages(ended: list[Ended]) -> list[str]:
    """The messages of all processes, without the libraries' warnings."""
    lines = [line for one in ended for line in one.err.splitlines()]
    return [line for line in lines if line.startswith(("error:", "interrupted", "process "))]


def _like(one: Path, other: Path) -> None:
    weights, others = tensors(one), tensors(other)
    assert weights.keys() == others.keys()
    for key, tensor in weights.items():
        assert float((tensor - others[key]).norm()) <= 10 * TOLERANCE * float(tensor.norm()) + 1e-6, key


def _windows_done(out: Path) -> int:
    return reprune.status(out).windows_done


@pytest.mark.parametrize(
    ("fault", "rank", "count", "then"),
    [
        *(("kill", 1, 2, 4), ("kill", 0, 2, 1), ("kill", 3, 4, 2)),
        *(("full", 1, 2, 1), ("full", 0, 4, 2), ("memory", 1, 2, 1)),
    ],
)
def test_what_ends_one_process_ends_all_with_one_message_and_any_number_goes_on_with_the_run(
    fault: str, rank: int, count: int, then: int, here: Path, by_one: Path
) -> None:
    began = time.monotonic()
    ended = _ended(_faulty(count, fault, str(rank), "2", "prune", "llama", "--out", "cut", *CR))
    assert time.monotonic() - began < BOUND
    for number, one in enumerate(ended):
        assert one.code == (-signal.SIGKILL if fault == "kill" and number == rank else 1)
    said = _messages(ended)
    # If one process fails by itself, the others are not told why and may say that they have lost it.
    own = [line for line in said if "has lost the others" not in line]
    assert len(said) - len(own) <= 1
    if fault == "kill":
        assert not own
        assert "reprune resume" in said[0]
        assert ".cc" not in said[0]  # no location in PyTorch's source
    else:
        assert len(own) == 1
        assert {"full": "No space left", "memory": "out of memory ("}[fault] in own[0]
        assert own[0].startswith("error: " if rank == 0 else f"process {rank} of {count}: error: ")
    assert not any("Traceback" in one.err for one in ended)
    assert _windows_done(here / "cut") in ((2,) if rank == 0 else (2, 3))  # the first process may have finished it
    assert [one.code for one in _ended(_commands(then, "resume", "cut", "-q"))] == [0] * then
    _like(by_one, here / "cut")
    assert reprune.verify(here / "cut").passed


def test_a_model_that_changes_on_the_way_is_said_once(here: Path, llama: Path) -> None:
    (here / "llama").unlink()
    shutil.copytree(llama, here / "llama")
    ended = _ended(_faulty(2, "change", "0", "1", "prune", "llama", "--out", "cut", *CR))
    assert [one.code for one in ended] == [1, 1]
    (said,) = _messages(ended)
    assert "config.json: was changed or replaced" in said
    assert "reprune resume" in said
    assert _windows_done(here / "cut") == 2


def test_one_process_goes_on_with_what_two_began(here: Path, by_one: Path, cli: Cli) -> None:
    _ended(_faulty(2, "kill", "1", "3", "prune", "llama", "--out", "cut", *CR))
    assert _windows_done(here / "cut") in (3, 4)
    assert cli("resume", "cut", "-q").code == 0
    _like(by_one, here / "cut")


def test_a_process_that_is_silent_is_given_up(here: Path) -> None:
    arguments = ["stop", "1", "2", "prune", "llama", "--out", "cut", *CR, "--rank-timeout", "5"]
    ended = _ended(_faulty(2, *arguments), stopped=1)
    assert ended[0].code == 1
    (said,) = _messages(ended)
    assert "process 0 of 2 has lost the others" in said
    assert _windows_done(here / "cut") in (2, 3)


def test_a_run_that_another_process_holds_is_refused_once(here: Path) -> None:
    _ended(_faulty(1, "full", "0", "1", "prune", "llama", "--out", "cut", *CR))
    with Ledger(here / "cut"):
        ended = _ended(_commands(2, "resume", "cut", "-q"))
    assert [one.code for one in ended] == [2, 2]
    (said,) = _messages(ended)
    assert "another process" in said


def _stopping(*arguments: str) -> None:
    """The command line, whose first process stops responding when it draws samples."""
    from reprune.doors import api

    def draw(*_: Any) -> Any:
        Path("drawing").touch()
        os.kill(os.getpid(), signal.SIGSTOP)

    api.draw = draw
    together.command(*arguments)


@pytest.mark.parametrize("interrupted", [False, True])
def test_those_who_wait_for_the_first_give_it_up_or_are_interrupted(interrupted: bool, here: Path) -> None:
    patience = ["--rank-timeout", "600" if interrupted else "5"]
    ranks = together.start(2, _stopping, "prune", "llama", "--out", "cut", *CR, *patience)
    while not (here / "drawing").exists():
        time.sleep(0.1)
    if interrupted:
        ranks[1].send(signal.SIGTERM)
    ended = _ended(ranks, stopped=0)
    assert ended[1].code == 1
    assert ["process 1 of 2 has lost the others (no sign of life" in one for one in _messages(ended)] == (
        [] if interrupted else [True]
    )


@pytest.mark.parametrize("arguments", [["--sparsity", "2"], ["--samples", "1"], ["--pruner", "chance"]])
def test_bad_input_is_said_once_and_nothing_is_written(arguments: list[str], here: Path) -> None:
    ended = _ended(_commands(2, "prune", "llama", "--out", "bad", *CR, *arguments))
    assert [one.code for one in ended] == [2, 2]
    assert len(_messages(ended)) == 1
    assert not (here / "bad").exists()


def test_what_is_wrong_in_one_process_alone_is_said_by_it(here: Path) -> None:
    """For example, another machine lacks the model."""
    (here / "elsewhere").mkdir()
    ended = _apart(here, here / "elsewhere", "prune", "llama", "--out", "bad", *CR)
    assert ended[1].code == 2
    said = _messages(ended)
    assert [line for line in said if line.startswith("process 1 of 2: error: llama: ")]
    assert not any("resume" in line for line in said), "nothing has begun"
    assert not list(here.glob("bad/*.safetensors"))


def test_only_the_first_machine_needs_the_texts(here: Path) -> None:
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "llama").symlink_to(here / "llama")
    ended = _apart(here, here / "elsewhere", "prune", "llama", "--out", "two", *CR, "--reconstruct", "LR")
    assert [(one.code, one.err) for one in ended] == [(0, "")] * 2
    assert [path.name for path in (here / "elsewhere").iterdir()] == ["llama"]


def _apart(here: Path, elsewhere: Path, *arguments: str) -> list[Ended]:
    """The command line in two processes, each with its own working folder, as on two machines."""
    port = together.free_port()
    folders = enumerate([here, elsewhere])
    return _ended(
        [Rank(together.command, arguments, together.places(rank, 2, port), folder) for rank, folder in folders]
    )


def _elsewhere(what: str, *arguments: str) -> None:
    """The command line, with a second process whose machine multiplies in bfloat16, or has another PyTorch."""
    from reprune.doors import api, devices, processes

    second = os.environ["RANK"] == "1"
    if what == "bfloat16":
        devices._cpu_multiplies = lambda precision: second
        run = api.run_windows

        def running(recipe: Any, *rest: Any) -> None:
            print("products in", recipe.precision)
            run(recipe, *rest)

        api.run_windows = running
    elif second:
        own = processes.versions()
        processes.versions = lambda *pruners: {**own, "torch": what}
    together.command(*arguments)


def test_what_auto_is_on_the_first_machine_it_is_on_all(here: Path) -> None:
    settings = ("--set", "precision=auto", "--reconstruct", "LR")
    ended = _ended(together.start(2, _elsewhere, "bfloat16", "prune", "llama", "--out", "two", *CR, *settings))
    assert [(one.code, one.out) for one in ended] == [(0, "products in float32\n")] * 2


GENERATE = ["--samples", "1", "--length", "32", "--language", "any", "--filters", "none", "--batch-size", "1"]


@pytest.mark.parametrize("arguments", [["prune", "llama", *CR], ["generate", "llama", *GENERATE]])
def test_another_version_on_another_machine_is_refused(arguments: list[str], here: Path) -> None:
    ended = _ended(together.start(2, _elsewhere, "1.0", *arguments, "--out", "new.jsonl"))
    assert [one.code for one in ended] == [2, 2]
    (said,) = _messages(ended)
    assert said.startswith("error: process 1 of 2 has torch 1.0 (the first ")
    assert not (here / "new.jsonl").exists()


def _of_its_own_cache(*arguments: str) -> None:
    """The command line, whose processes each have their own cache of Hub models."""
    from huggingface_hub import constants

    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = f"hub{os.environ['RANK']}", True
    together.command(*arguments)


@pytest.mark.parametrize(
    "arguments", [["prune", "owner/tiny", *CR, "--reconstruct", "LR"], ["generate", "owner/tiny", *GENERATE]]
)
def test_another_commit_on_another_machine_is_refused_unless_it_is_the_same_model(
    arguments: list[str], here: Path
) -> None:
    commits = ["01234567" * 5, "89abcdef" * 5]
    for rank, commit in enumerate(commits):
        repository = here / f"hub{rank}" / "models--owner--tiny"
        model = shutil.copytree(here / "llama", repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    (model / "README.md").write_text("a better card")
    ended = _ended(together.start(2, _of_its_own_cache, *arguments, "--out", "same.jsonl"))
    assert [one.code for one in ended] == [0, 0], ended
    flip_bit(model / "model.safetensors", (model / "model.safetensors").stat().st_size - 1)
    ended = _ended(together.start(2, _of_its_own_cache, *arguments, "--out", "new.jsonl"))
    assert [one.code for one in ended] == [2, 2]
    assert _messages(ended) == [
        f"error: owner/tiny: process 1 of 2 has a different fingerprint than the first, as it has commit {commits[1]} "
        f"and the first {commits[0]}; give owner/tiny@{commits[0]}."
    ]
    assert not (here / "new.jsonl").exists()


def test_another_tokenizer_on_another_machine_is_refused(here: Path) -> None:
    other = shutil.copytree(here / "llama", here / "elsewhere" / "llama") / "tokenizer.json"
    other.write_text(other.read_text() + "\n")
    ended = _apart(here, here / "elsewhere", "prune", "llama", "--out", "two", *CR)
    assert [one.code for one in ended] == [2, 2]
    assert _messages(ended) == [
        "error: llama: process 1 of 2 has a different tokenizer.json than the first; put the same model on all "
        "machines."
    ]


def test_commands_of_one_process_are_refused(here: Path) -> None:
    ended = _ended(_commands(2, "status", "llama"))
    assert [one.code for one in ended] == [2, 2]
    assert all("start it without torchrun" in one.err for one in ended)


def test_an_interrupt_of_all_is_said_once(here: Path) -> None:
    ranks = _commands(2, "prune", "llama", "--out", "cut", *CR, "--epochs", "2000", "--set", "guard=off")
    while not (here / "cut" / ".reprune" / "run.json").exists():
        time.sleep(0.1)
    time.sleep(1)
    for rank in ranks:
        rank.send(signal.SIGTERM)
    ended = _ended(ranks)
    assert [one.code for one in ended] == [1, 1]
    (said,) = _messages(ended)
    assert "reprune resume" in said


def test_one_process_of_a_launcher_writes_the_bytes_of_one_without(here: Path, by_one: Path) -> None:
    assert [one.code for one in _ended(_commands(1, "prune", "llama", "--out", "one", *CR))] == [0]
    shards = {path.name: path.read_bytes() for path in by_one.glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in (here / "one").glob("*.safetensors")} == shards
