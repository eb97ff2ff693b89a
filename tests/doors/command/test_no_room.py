"""A disk that is full or fails ends a run with one clear error, and the run goes on once there is room."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import reprune
import reprune.engine.run as engine
from reprune.errors import NumericalError
from tests.doors.conftest import QUICK, Cli, Said
from tests.doors.study.runs import QUICK as ARGUMENTS
from tests.engine import together

_RUN = ["llama", "--reconstruct", "BR+GP+CR", *QUICK]
Mount = Callable[[str], None]


def _go_on(cli: Cli, out: Path) -> Said:
    if (out / ".reprune" / "run.json").exists():
        return cli("resume", out, "-q")
    return cli("prune", *_RUN, "--out", out, "-q")


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture
def whole(by_one: Path) -> dict[str, bytes]:
    return _weights(by_one)


def _one_error(said: Said, expected: str) -> None:
    assert said.code == 1, said.err
    assert said.err.startswith("error: "), said.err
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert expected in said.err, said.err


@pytest.fixture
def small_disk(here: Path) -> Iterator[tuple[Path, Mount]]:
    """A file system whose size can be changed; skips if this process may not mount one."""
    place = here / "disk"
    place.mkdir()

    def mount(*options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "reprune-test", str(place)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def resize(size: str) -> None:
        if mount("remount", f"size={size}") != 0:
            pytest.skip("this process may not change the size of a file system")

    if shutil.which("mount") is None or os.geteuid() != 0 or mount("size=64k") != 0:
        pytest.skip("this process may not mount a file system")
    try:
        yield place, resize
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("streams", ["streams.memory=1GB", "streams.memory=0B"])
def test_a_full_disk_is_said_and_a_run_goes_on_when_there_is_room(
    streams: str, cli: Cli, whole: dict[str, bytes], small_disk: tuple[Path, Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reprune.doors.api.check_disk", lambda *_: None)  # as if others fill the disk after the check
    place, resize = small_disk
    out, full = place / "out", 0
    # In small steps where pages have 4 kB, then in large ones, where each file takes a larger page.
    for size in (*range(40, 2000, 40), *(2000 << step for step in range(8))):
        resize(f"{size}k")
        if (out / ".reprune" / "run.json").exists():
            said = cli("resume", out, "-q")
        else:
            said = cli("prune", *_RUN, "--set", streams, "--out", out, "-q")
        if said.code == 0:
            break
        full += 1
        _one_error(said, "No space left on device")
        assert "are free" in said.err or ".stream" in said.err
        assert ("reprune resume" in said.err) == (out / ".reprune" / "run.json").exists()
    assert said.code == 0, f"no room in {size} kB: {said.err}"
    assert full > 3
    assert _weights(out) == whole


@pytest.mark.parametrize(
    ("first", "number"), [(1, errno.EIO), (6, errno.ENOSPC), (11, errno.EACCES), (16, errno.EROFS)]
)
def test_whatever_step_fails_is_named_and_loses_nothing(
    first: int, number: int, cli: Cli, here: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth step fails, for a different reason in each of four tests."""
    steps = {"fsync": os.fsync, "replace": os.replace}
    for failing in range(first, 200, 20):
        out, count = here / f"out-{failing}", [0]

        def counting(original: Callable[..., Any], failing: int = failing, count: list[int] = count) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                count[0] += 1
                if count[0] == failing:
                    raise OSError(number, os.strerror(number))
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name, original in steps.items():
                patch.setattr(os, name, counting(original))
            said = cli("prune", *_RUN, "--out", out, "-q")
        if said.code == 0:
            assert failing > 30
            break
        _one_error(said, os.strerror(number))
        assert _go_on(cli, out).code == 0, said.err
        assert _weights(out) == whole
    else:
        pytest.fail("there was no end of steps")


def _limited(size: int, *arguments: str) -> None:
    """The command line, with a limit on the size of files."""
    sys.dont_write_bytecode = True  # a cut .pyc would be read by later processes
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    together.command(*arguments)


def test_a_file_that_may_not_grow_is_named(here: Path, whole: dict[str, bytes], cli: Cli) -> None:
    """The error comes from the system through the library that writes tensors, in a separate process."""
    limit = max(len(content) for content in whole.values()) // 2
    arguments = ["prune", *map(str, _RUN), "--out", "out", "-q"]
    said = together.start_alone(_limited, limit, *arguments).wait(60)
    _one_error(Said(said.code, said.out, said.err), "File too large")
    assert ".safetensors" in said.err
    assert cli("resume", "out", "-q").code == 0
    assert _weights(here / "out") == whole


def test_without_a_folder_for_temporary_files_it_is_said_how_to_name_one(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container in which only the result's folder can be written."""
    (here / "rows.jsonl").write_text('{"text": "a"}\n')
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(here / "nowhere")])
        said = cli("evaluate", "llama", "--text", "rows.jsonl")
    _one_error(said, "set TMPDIR to a folder that can be written to")


def test_a_run_that_will_not_fit_the_disk_is_refused_before_it_begins(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(here)
    files = sum(path.stat().st_size for path in (here / "llama").glob("*.safetensors"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=files - 20_000))
    said = cli("prune", *_RUN, "--out", "out")
    assert said.code == 2
    assert "are free there; give a folder on another disk" in said.err
    assert not (here / "out").exists()
    planned = cli("plan", *_RUN, "--out", "out")
    assert (planned.code, planned.err) == (2, said.err)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=files + 20_000))
    assert cli("prune", *_RUN, "--out", "out", "-q").code == 0
    streams = ("--set", "streams.memory=0B", "--seqlen", "128", "--samples", "20")
    assert "a run writes about" in cli("prune", *_RUN, *streams, "--out", "other").err
    arguments = {**ARGUMENTS, "settings": ["precision=float32", "streams.memory=0B"]}
    needed = reprune.plan("llama", reconstruct="BR+GP+CR", **arguments).forecast.disk_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    assert "a run writes about" in cli("prune", *_RUN, *streams[:2], "--out", "other").err, "held-out samples too"


def test_a_run_that_cannot_fit_the_memory_is_refused_before_it_begins(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reprune.doors.prepare.available_memory", lambda _: 20)
    said = cli("prune", *_RUN, "--out", "out")
    assert said.code == 2
    assert "a window and its solver's state take at least" in said.err
    assert "solver.compact=true" in said.err
    assert not (here / "out").exists()
    planned = cli("plan", *_RUN)
    assert (planned.code, planned.err) == (2, said.err)
    assert cli("plan", *_RUN, "--on", "h100").code == 0  # another machine's memory is not checked


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says which files are in memory")
def test_a_run_that_fails_gives_its_streams_back_though_its_error_is_still_held(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        assert ".stream" in Path("/proc/self/maps").read_text()
        raise NumericalError("a fault")

    monkeypatch.setattr(engine._Windows, "_fit", broken)
    with pytest.raises(NumericalError) as held:
        reprune.prune(
            "llama", here / "out", calibration="text.txt", samples=6, seqlen=24, settings=["streams.memory=0B"]
        )
    assert held.tb is not None
    assert not list((here / "out").rglob("*.stream"))
    assert ".stream" not in Path("/proc/self/maps").read_text()
