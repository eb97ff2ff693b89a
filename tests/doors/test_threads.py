"""A note says if a container's CPU quota is too small for PyTorch's threads, which wait for each other by spinning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reprune
from reprune.doors import threads
from reprune.doors.devices import slowness
from reprune.doors.threads import allowed_cpus, said_of_threads
from tests import tiny
from tests.doors.conftest import QUICK, Cli


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/pod/own\n", {"pod/own/cpu.max": "max 100000\n", "pod/cpu.max": "250000 100000\n"}, 2.5),
        ("0::/docker/abc\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/job\n", {"job/cpu.max": "max 100000\n"}, None),
        (
            "4:cpu,cpuacct:/docker/abc\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            4.0,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (
            "5:cpuset:/own\n4:cpuacct:/own\n3:cpu:/\n",
            {"cpu/own/cpu.cfs_quota_us": "100000\n", "cpu/own/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("4:memory:/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
    ids=["pod", "container", "none", "first version", "none of the first", "of others", "of memory alone"],
)
def test_a_container_s_share_of_processors_is_found(
    groups: str, files: dict[str, str], cpus: float | None, tmp_path: Path
) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert allowed_cpus(tmp_path) == cpus


def test_a_system_without_groups_has_no_share(tmp_path: Path) -> None:
    assert allowed_cpus(tmp_path) is None


@pytest.mark.parametrize(
    ("cpus", "count", "way"),
    [(4.0, 64, "4"), (2.5, 4, "2"), (2.5, 3, None), (0.5, 2, "1"), (0.5, 1, None), (None, 64, None)],
)
def test_more_threads_than_its_processors_are_spoken_of(
    cpus: float | None, count: int, way: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "allowed_cpus", lambda: cpus)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    said = said_of_threads()
    assert said is None if way is None else said is not None and said.endswith(f"; OMP_NUM_THREADS={way} is faster")


def test_of_one_processor_it_is_said_in_the_singular(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "allowed_cpus", lambda: 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "is limited to 1 CPU; OMP_NUM_THREADS=1" in str(said_of_threads())


def test_each_command_that_runs_a_model_says_so_once(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    tiny.save("llama", here / "llama")
    (here / "text.txt").write_text(tiny.text())
    monkeypatch.setattr(threads, "allowed_cpus", lambda: 4.0)
    line = "note: PyTorch computes with 64 threads, but this container or job is limited to"
    assert cli("plan", "llama", *QUICK).out.count(line) == 1
    assert slowness("float32", "cpu") and not slowness("float32", "cuda")
    assert cli("prune", "llama", "--out", "out", "--reconstruct", "LR", *QUICK).out.count(line) == 1
    own = ("--self-generate", "2", "--set", "self_generate.filters=[duplicates]")
    assert cli("prune", "llama", "--out", "own", "--reconstruct", "LR", *QUICK, *own).out.count(line) == 1
    told: list[str] = []
    reprune.evaluate("llama", "text.txt", seqlen=32, max_windows=2, notify=told.append)
    assert [one.startswith(line) for one in told] == [True]
