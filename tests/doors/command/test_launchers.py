"""Processes that a launcher starts on one or two machines find each other; if their link is cut, they end."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import reprune
from reprune.doors.command import launched
from reprune.errors import InputError
from tests.doors.command.conftest import CR
from tests.doors.command.test_ranks import BOUND, _like, _windows_done
from tests.doors.conftest import Cli
from tests.engine import together
from tests.engine.together import Rank

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


def _environment(**own: str) -> dict[str, str]:
    """The environment of a process with one thread and these sources."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(together.SOURCES), **own}


def _stuck(launchers: Sequence[subprocess.Popen[bytes]]) -> int:
    """The number of launchers that do not end in time; these and their children are ended and print where they were."""
    until = time.monotonic() + 2 * BOUND
    found = 0
    for launcher in launchers:
        try:
            launcher.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            found += 1
            for one in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGABRT)
                    one.wait(BOUND)
    return found


@pytest.mark.parametrize("error", [None, InputError("no model"), OSError("full"), ValueError(), KeyboardInterrupt()])
def test_only_a_process_that_has_not_failed_leaves_the_others_as_if_all_were_done(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    ranks = SimpleNamespace(first=True, blame=lambda _: True, close=closed.append)
    monkeypatch.setattr(launched, "launched", lambda: True)
    monkeypatch.setattr(launched, "Together", lambda _: ranks)
    with suppress(BaseException), launched.ranks_of_launch(1):
        if error is not None:
            raise error
    assert closed == [error is not None]


def test_two_machines_find_each_other_as_the_docs_say(here: Path, by_one: Path) -> None:
    """Two launchers on this machine, each with one process."""
    meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{together.free_port()}"]
    command = [*TORCHRUN, "1", *meeting, "-m", "reprune", "prune", "llama", "--out", "two", *CR[:-1]]
    environment = _environment(PYTHONFAULTHANDLER="1")
    files = [here / "one.txt", here / "other.txt"]
    machines = []
    for file in files:
        with file.open("w") as said:
            machines.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
    stuck = _stuck(machines)
    told = "\n".join(file.read_text() for file in files)
    assert not stuck, told
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert told.count("sparse model") == 1
    assert json.loads((here / "two" / "reprune.json").read_text())["ranks"] == 2
    _like(by_one, here / "two")


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a link between them, at 10.99.7.1 and 10.99.7.2; skips if they cannot be made."""
    names = (f"reprune-{os.getpid()}-a", f"reprune-{os.getpid()}-b")

    def ip(*arguments: str) -> bool:
        return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0

    if shutil.which("ip") is None or os.geteuid() != 0 or not ip("netns", "add", names[0]):
        pytest.skip("this process may not make network namespaces")
    try:
        made = [
            ip("netns", "add", names[1]),
            ip("-n", names[0], "link", "add", "one", "type", "veth", "peer", "name", "other", "netns", names[1]),
        ]
        for place, (name, link) in enumerate(zip(names, ("one", "other"), strict=True), 1):
            made += [
                ip("-n", name, "addr", "add", f"10.99.7.{place}/24", "dev", link),
                ip("-n", name, "link", "set", link, "up"),
                ip("-n", name, "link", "set", "lo", "up"),
            ]
        if not all(made):
            pytest.skip("this process may not link network namespaces")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def _on_host(host: str, *arguments: str) -> None:
    """The command line, in a network namespace."""
    with Path("/run/netns", host).open("rb") as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
    together.command(*arguments)


def test_where_the_link_between_two_hosts_is_cut_both_end_and_the_run_is_gone_on_with(
    two_hosts: tuple[str, str], here: Path, cli: Cli
) -> None:
    port, ledger = together.free_port(), here / "cut" / ".reprune" / "ledger.jsonl"
    arguments = ["prune", "llama", "--out", "cut", *CR, "--epochs", "40", "--set", "guard=off", "--rank-timeout", "8"]
    ranks = []
    for rank, (host, link) in enumerate(zip(two_hosts, ("one", "other"), strict=True)):
        own = {**together.places(rank, 2, port), "MASTER_ADDR": "10.99.7.1", "GLOO_SOCKET_IFNAME": link}
        ranks.append(Rank(_on_host, (host, *arguments), own, here))
    until = time.monotonic() + BOUND
    while not ledger.exists() and time.monotonic() < until:
        time.sleep(0.05)
    subprocess.run(["ip", "-n", two_hosts[0], "link", "set", "one", "down"], check=True)
    ended = [rank.wait(BOUND) for rank in ranks]
    assert [one.code for one in ended] == [1, 1]
    assert all("has lost the others" in one.err for one in ended)  # each host has its own reader
    assert _windows_done(here / "cut") >= 1
    assert cli("resume", "cut", "-q").code == 0
    assert reprune.verify(here / "cut").passed
