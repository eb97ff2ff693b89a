"""A record that cannot be read is refused, and only reports are written over."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprune.doors.report.write import report
from reprune.errors import InputError
from tests.doors.conftest import Cli
from tests.doors.report.pages import Page, words_only, written
from tests.doors.report.records import block, cell, run_record, study_record, window


def _without(*path: str, of: Callable[[], dict[str, Any]] = lambda: run_record(2)) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        record = of()
        inner: Any = record
        for key in path[:-1]:
            inner = inner[int(key) if key.isdigit() else key]
        inner.pop(path[-1])
        return record

    return make


def _of_kept_epoch(number: int) -> dict[str, Any]:
    record = run_record(2)
    record["windows"][1]["kept_epoch"] = number
    return record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_without("blocks"), r"out/reprune.json is not a record .* blocks: field required"),
        (_without("recipe"), "recipe: field required"),
        (_without("windows", "1", "kept_epoch"), r"windows.1.kept_epoch: field required"),
        (_without("blocks", "0", "relative_heldout_error"), "blocks.0.relative_heldout_error: field required"),
        (_without("windows", "1", "loss"), r"windows.1.loss: field required"),
        (_without("windows", "0", "guard"), r"windows.0.guard: field required"),
        (_without("machine"), "machine: field required"),
        (lambda: run_record(2, peak_memory_bytes={"host": 10**400, "device": 0}), "peak_memory_bytes.host: input"),
        (lambda: _of_kept_epoch(10**400), "windows.1.kept_epoch: input should be less than"),
        (lambda: _of_kept_epoch(-1), "windows.1.kept_epoch: input should be greater than or equal to 0"),
        (lambda: run_record(2, blocks=[]), "blocks: tuple should have at least 1 item"),
        (lambda: run_record(2, windows=[]), "windows: tuple should have at least 1 item"),
        (
            lambda: run_record(1, windows=[window(0, [math.inf, 0.5], [1.0, 0.9])]),
            "windows.0.relative_calibration_error.before: input should be a finite number",
        ),
        (
            lambda: run_record(1, windows=[window(0, [1.0, 0.5], [1.0, math.nan], kept=1)]),
            "windows.0.relative_heldout_error.after: input should be a finite number",
        ),
        (lambda: run_record(1, blocks=[block(0, math.inf, 0.1)]), "blocks.0.calibration_error: input should be"),
        (lambda: run_record(2, windows="none"), "windows: input should be a valid tuple"),
        (list, "the whole: input should be a valid dictionary"),
        (lambda: "{", r"damaged: it is not valid JSON \("),
        (lambda: "[" * 100_000, r"damaged: it is not valid JSON \("),
        (lambda: b"\xff\xfe", r"damaged: it is not valid JSON \("),
        (lambda: study_record(format=2), "study.json is not a record .* format: input should be 1"),
        (_without("packages", of=study_record), "packages: field required"),
        (_without("cells", "0", "seed", of=study_record), r"cells.0.seed: field required"),
        (lambda: study_record(kind="else"), "kind: input should be 'reprune study'"),
        (lambda: study_record(cells=[]), "cells: tuple should have at least 1 item"),
        (lambda: study_record(cells=[{"name": "x"}]), r"cells.0.pruner: field required"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(
    content: Callable[[], Any], message: str, here: Path, cli: Cli
) -> None:
    made = content()
    if isinstance(made, str | bytes):
        (here / "out").mkdir()
        (here / "out" / "reprune.json").write_bytes(made if isinstance(made, bytes) else made.encode())
    else:
        written(here / "out", made)
    said = cli("report", "out")
    assert (said.code, said.out) == (2, "")
    assert re.search(message, said.err), said.err
    assert said.err.count("\n") == 1
    assert not (here / "out" / "report.html").exists()


def test_a_folder_without_a_record_is_refused(here: Path, cli: Cli) -> None:
    (here / "out" / ".reprune").mkdir(parents=True)
    assert "out holds neither reprune.json nor study.json; give the folder" in cli("report", "out").err
    (here / "out" / ".reprune" / "run.json").write_text("{}")
    said = cli("report", "out")
    assert (said.code, said.err) == (
        2,
        "error: out: holds an unfinished run; go on with 'reprune resume out', then make the report.\n",
    )
    assert "text.txt is not a folder" in cli("report", "text.txt").err
    assert cli("report", "nowhere").code == 2
    assert cli("report").code == 2


def test_a_record_that_may_not_be_read_is_an_input_error(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may read everything, so the system is made to refuse."""
    said = cli("report", "x" * 300)
    assert (said.code, said.err) == (
        2,
        f"error: {'x' * 300}: cannot be read (File name too long); give a shorter name.\n",
    )
    written(here / "out", run_record(1))

    def refuse(path: Path, **_: Any) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    said = cli("report", "out")
    assert (said.code, said.err) == (
        2,
        "error: out/reprune.json cannot be read (Permission denied); check its permissions\n",
    )


@words_only
def test_only_a_report_is_written_over(here: Path, cli: Cli) -> None:
    written(here / "out", run_record(1))
    assert cli("report", "out", "-q").code == 0
    first = (here / "out" / "report.html").read_bytes()
    written(here / "out", run_record(2))
    assert cli("report", "out", "-q").code == 0
    second = (here / "out" / "report.html").read_bytes()
    assert first != second
    for name, content in (("mine.html", "<html>mine</html>"), ("empty.html", ""), ("report.html", "mine")):
        (here / name).write_text(content)
        said = cli("report", "out", "--out", name)
        assert said.code == 2
        assert f"{name} exists and is not a report of reprune" in said.err
        assert (here / name).read_text() == content
    said = cli("report", "out", "--out", "out/reprune.json")
    assert said.code == 2
    assert json.loads((here / "out" / "reprune.json").read_text())
    assert "out is a folder" in cli("report", "out", "--out", "out").err
    assert sorted(path.name for path in (here / "out").iterdir()) == ["report.html", "reprune.json"]


def test_a_name_that_is_too_long_is_refused(here: Path, cli: Cli) -> None:
    written(here / "out", run_record(1))
    said = cli("report", "out", "--out", f"{'a' * 300}.html")
    assert (said.code, f"({os.strerror(errno.ENAMETOOLONG)}); give another file" in said.err) == (2, True)


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra_the_message_says_how_to_get_it(
    missing: str, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(here / "out", run_record(1))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    said = cli("report", "out")
    assert said.code == 2
    assert re.search(rf"(?i)a report needs {missing}; install it with: pip install 'reprune\[report\]'", said.err)
    assert not (here / "out" / "report.html").exists()


@words_only
def test_a_report_that_cannot_be_finished_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(here / "out", run_record(1))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report(here / "out")
    assert [path.name for path in (here / "out").iterdir()] == ["reprune.json"]


@words_only
def test_a_study_is_read_where_both_records_are(tmp_path: Path) -> None:
    written(tmp_path, run_record(1))
    written(tmp_path, study_record([cell("wanda", "LR")]))
    assert "Pruning study" in Page(report(tmp_path).read_text(encoding="utf-8")).text


def test_the_error_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        report(tmp_path)


@words_only
def test_a_place_that_cannot_be_written_is_refused(here: Path, cli: Cli) -> None:
    written(here / "out", run_record(1))
    said = cli("report", "out", "--out", "text.txt/report.html")
    assert said.code == 2
    why = "a file is in the place of one of its folders"
    assert said.err == f"error: --out text.txt/report.html: {why}; give another file.\n"


def test_a_pipe_is_refused_without_reading_it(here: Path, cli: Cli) -> None:
    written(here / "out", run_record(1))
    os.mkfifo(here / "page.html")
    pipe = os.open(here / "page.html", os.O_RDWR)
    os.write(pipe, b"x" * 4096)  # what is read to look for a report
    said = cli("report", "out", "--out", "page.html")
    os.close(pipe)
    assert (said.code, said.err.startswith("error: page.html is a pipe or a device; give --out")) == (2, True)
