"""A signal at any moment ends a command with one line and exit code 1: here in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doors.command.test_interruption import COMMAND, SOURCES

_IMPORTING = """
import os, signal
try:
    os.kill(os.getpid(), signal.{signal})
    import time
except BaseException as error:
    raise ModuleNotFoundError("Could not import module 'PreTrainedModel'") from error
"""
_LEAVING = """
import atexit, os, signal, typer
from reprune.doors.command.options import exit_codes

atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    with exit_codes():
        os.kill(os.getpid(), signal.SIGINT)
except typer.Exit as end:
    assert end.exit_code == 1
"""


_BEGINNING = """
import os, runpy, signal, typer

def __call__(*_, **__):
    os.kill(os.getpid(), signal.{signal})

typer.Typer.__call__ = __call__
runpy.run_module("reprune", run_name="__main__")
"""
_TWICE = """
import contextlib, os, signal
from reprune.doors.command.options import exit_codes

whole = contextlib._GeneratorContextManager.__exit__

def __exit__(self, *raised):
    os.kill(os.getpid(), signal.SIGINT)
    return whole(self, *raised)

contextlib._GeneratorContextManager.__exit__ = __exit__
with exit_codes():
    os.kill(os.getpid(), signal.SIGINT)
"""

_ENDING = """
import gc, os, runpy, signal, typer
from reprune.doors.command.options import exit_codes

def __call__(*_, **__):
    with exit_codes():
        pass

typer.Typer.__call__ = __call__
gc.freeze = lambda: os.kill(os.getpid(), signal.{signal})
runpy.run_module("reprune", run_name="__main__")
"""
_UNREAD = """
import os, signal
from reprune.doors.command.interrupts import heed_at_once
from reprune.doors.printable import complain

heed_at_once(lambda: complain("interrupted"))
os.close(2)
try:
    os.kill(os.getpid(), signal.SIGINT)
finally:
    os._exit(0)
"""
_ASKING = """
import os, signal, sys
from reprune.doors.command.options import exit_codes

def way_on():
    if sys.exc_info()[0] is KeyboardInterrupt and not asked:
        asked.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
    return "; go on"

asked = []
with exit_codes(way_on=way_on):
    os.kill(os.getpid(), signal.SIGINT)
"""


def _run(code: str, folder: Path) -> tuple[int, str]:
    environment = {**os.environ, **SOURCES}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_an_interrupt_while_a_library_is_imported_is_said_to_be_one(sent: str, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(_IMPORTING.format(signal=sent))
    (tmp_path / "cut" / ".reprune").mkdir(parents=True)
    (tmp_path / "cut" / ".reprune" / "run.json").touch()
    lines = "from pathlib import Path", "from reprune.doors.command.options import exit_codes"
    said = _run("\n".join([*lines, "with exit_codes(Path('cut')):", "    import library"]), tmp_path)
    assert said == (1, "interrupted; finished windows are kept, go on with: reprune resume cut\n")


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_an_interrupt_before_a_command_begins_is_said_to_be_one(sent: str, tmp_path: Path) -> None:
    assert _run(_BEGINNING.format(signal=sent), tmp_path) == (1, "interrupted\n")


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_an_interrupt_while_the_command_line_is_imported_is_said_to_be_one(sent: str, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{sent})\n")
    command = [*COMMAND, "status", "cut"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **SOURCES})
    assert (ended.returncode, ended.stderr) == (1, "interrupted\n")


def test_an_interrupt_while_another_ends_the_command_is_said_once(tmp_path: Path) -> None:
    assert _run(_TWICE, tmp_path) == (1, "interrupted\n")


def test_an_interrupt_while_it_is_looked_for_a_way_on_does_not_keep_it_from_being_said(tmp_path: Path) -> None:
    assert _run(_ASKING, tmp_path) == (1, "interrupted; go on\n")


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_an_interrupt_once_a_command_is_done_adds_nothing(sent: str, tmp_path: Path) -> None:
    assert _run(_ENDING.format(signal=sent), tmp_path) == (1, "")


def test_an_interrupt_ends_the_process_though_nobody_reads_what_is_said(tmp_path: Path) -> None:
    assert _run(_UNREAD, tmp_path) == (1, "")


def test_a_second_interrupt_adds_nothing(tmp_path: Path) -> None:
    assert _run(_LEAVING, tmp_path) == (1, "interrupted\n")
