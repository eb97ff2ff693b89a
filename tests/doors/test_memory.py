"""The memory that is left is what the device or the machine has, or less if a control group has a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reprune.doors.memory import available_memory, free_memory

_SECOND = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 400\ninactive_file 200\n"}
_FIRST = {
    "memory.limit_in_bytes": "1000\n",
    "memory.usage_in_bytes": "700\n",
    "memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
}
_UNLIMITED = {"memory.max": "max\n"}, {**_FIRST, "memory.limit_in_bytes": f"{2**63 - 4096}\n"}


def _system(folder: Path, groups: str, files: dict[str, dict[str, str]]) -> Path:
    """The root of a machine with 4 kB available; `files` has its groups by folder."""
    for name, content in {
        "proc/meminfo": "MemTotal:       8 kB\nMemAvailable:       4 kB\n",
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{group}/{name}": text for group, all_of in files.items() for name, text in all_of.items()},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/job/step\n", {"job/step": _SECOND}, 500),
        ("0::/job/step\n", {"job": _SECOND, "job/step": _UNLIMITED[0]}, 500),
        ("0::/job/step\n", {"job": _SECOND, "job/step": {**_SECOND, "memory.max": "600"}}, 100),
        ("0::/docker/abc\n", {".": _SECOND}, 500),
        ("0::/job\n", {"job": {**_SECOND, "memory.current": "1300\n"}}, 0),
        ("0::/job\n", {"job": _UNLIMITED[0], "another": _SECOND}, 4096),
        ("9:cpu,cpuacct:/\n4:memory:/job/step\n0::/\n", {"memory/job": _FIRST, "memory/job/step": _UNLIMITED[1]}, 500),
        ("4:memory:/docker/abc\n0::/docker/abc\n", {"memory": _FIRST}, 500),
        ("4:memory:/\n", {"memory": _UNLIMITED[1]}, 4096),
        ("9:cpu:/job\n", {"job": _SECOND, "memory/job": _FIRST}, 4096),
        ("0::/pod:cri-containerd:abc\n", {"pod:cri-containerd:abc": _SECOND}, 500),
    ],
    ids=[
        "own",
        "parent",
        "least",
        "container",
        "over",
        "none",
        "first",
        "container of the first",
        "all",
        "other",
        "colons",
    ],
)
def test_the_limit_of_a_container_or_job_counts(
    groups: str, files: dict[str, dict[str, str]], free: int, tmp_path: Path
) -> None:
    assert free_memory(_system(tmp_path, groups, files)) == free


def test_pages_of_files_in_use_make_room_too(tmp_path: Path) -> None:
    files = {"job": {**_SECOND, "memory.stat": "inactive_file 200\nactive_file 90\nslab_reclaimable 7\nslab 50\n"}}
    assert free_memory(_system(tmp_path, "0::/job\n", files)) == 597


def test_a_system_that_does_not_say_has_no_limit(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None


def test_a_run_on_the_cpu_goes_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reprune.doors.memory.free_memory", lambda: 5)
    assert available_memory("cpu") == 5


def test_what_pytorch_has_freed_of_a_gpu_and_keeps_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as after measuring a model."""
    says = {"mem_get_info": (10, 100), "memory_reserved": 60, "memory_allocated": 5}
    for name, found in says.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    assert available_memory("cuda") == available_memory("cuda:0") == 65


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says what is available")
def test_this_machine_says_what_is_left() -> None:
    assert (available_memory("cpu") or 0) > 10**6
