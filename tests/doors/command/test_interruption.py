"""Whatever ends a run early leaves one plain message, an exit code, and a run that `resume` finishes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import reprune
from reprune.doors.command.generate import way_on
from reprune.doors.command.options import exit_codes
from reprune.engine import fresh as engine
from reprune.errors import NumericalError
from reprune.files.sealed import seal, unseal
from reprune.planning.generation.corpus import Corpus
from tests.doors.conftest import QUICK, Cli
from tests.doors.demo.test_model import write_gguf

COMMAND = [sys.executable, "-m", "reprune"]
SOURCES = {"PYTHONPATH": str(Path(reprune.__file__).parents[1])}
CR = [*QUICK, "--reconstruct", "BR+GP+CR"]
Break = Callable[[BaseException, int], None]


@pytest.fixture
def break_(monkeypatch: pytest.MonkeyPatch) -> Break:
    """A function that makes the pruning of one block raise an error, once."""
    whole = engine.prune_block_

    def set_(error: BaseException, block: int) -> None:
        def broken(pruned: Any, *arguments: Any) -> Any:
            if pruned.index == block:
                monkeypatch.setattr(engine, "prune_block_", whole)
                raise error
            return whole(pruned, *arguments)

        monkeypatch.setattr(engine, "prune_block_", broken)

    return set_


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def errors(folder: Path) -> list[Any]:
    return [block["heldout_error"] for block in json.loads((folder / "reprune.json").read_text())["blocks"]]


@pytest.mark.parametrize("block", [0, 1, 2])
def test_an_interrupted_run_is_resumed(block: int, here: Path, by_one: Path, cli: Cli, break_: Break) -> None:
    break_(KeyboardInterrupt(), block)
    cut = cli("prune", "llama", "--out", "cut", *CR)
    assert cut.code == 1
    assert "interrupted" in cut.err
    assert "reprune resume" in cut.err
    assert "Traceback" not in cut.err
    assert "sparse model" not in cut.out

    status = cli("status", "cut")
    assert status.code == 0
    assert f"{block} of 4 windows finished" in status.out
    assert status.out.endswith("unfinished; go on with: reprune resume cut\n")
    assert ("last: blocks" in status.out) == (block > 0)

    again = cli("prune", "llama", "--out", "cut", *CR)
    assert again.code == 2
    assert "reprune resume cut" in again.err
    assert cli("evaluate", "cut", "--text", "text.txt").code == 2, "an unfinished folder is no model"

    rest = cli("resume", "cut")
    assert (rest.code, rest.err) == (0, "")
    assert (f"going on: {block} of 4 windows are finished" in rest.out) == (block > 0)
    assert re.findall(r"^ +(\d)/4  ", rest.out, re.MULTILINE) == [str(number) for number in range(block + 1, 5)]
    assert "sparse model   cut\n" in rest.out
    assert shards(here / "cut") == shards(by_one)
    assert errors(here / "cut") == errors(by_one)
    assert "4 of 4 windows finished" in cli("status", "cut").out
    assert cli("resume", "cut").code == 2, "there is nothing left to do"


def test_a_run_of_a_gguf_file_is_resumed_without_its_conversion(
    here: Path, tmp_path: Path, cli: Cli, break_: Break
) -> None:
    write_gguf(here / "tiny.gguf")
    break_(KeyboardInterrupt(), 1)
    assert cli("prune", "tiny.gguf", "--out", "cut", *QUICK).code == 1
    shutil.rmtree(tmp_path / "cache")
    (here / "tiny.gguf").rename(here / "aside")
    said = cli("resume", "cut")
    assert said.code == 2
    assert said.err.endswith("the file to convert again is gone; put tiny.gguf back and resume.\n")
    (here / "aside").rename(here / "tiny.gguf")
    said = cli("resume", "cut")
    assert said.code == 0, said.err
    assert "converting tiny.gguf once" in said.out
    assert reprune.verify("cut")


def test_no_way_on_is_named_where_the_folder_cannot_be_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, exit_codes(Path("x" * 300)):
        raise KeyboardInterrupt
    assert (end.value.exit_code, capsys.readouterr().err) == (1, "interrupted\n")


def test_an_error_of_the_system_that_names_no_file_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, exit_codes():
        raise OSError(28, "No space left on device")
    assert (end.value.exit_code, capsys.readouterr().err) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("ignored", [True, False], ids=["in the background", "in front"])
def test_ctrl_c_does_not_reach_what_a_shell_has_started_in_the_background(ignored: bool) -> None:
    before = signal.SIG_IGN if ignored else signal.default_int_handler
    signal.signal(signal.SIGINT, before)
    with exit_codes():
        assert (signal.getsignal(signal.SIGINT) is before) is ignored
        assert callable(signal.getsignal(signal.SIGTERM))


def test_the_way_on_can_be_pasted_into_a_shell(cli: Cli, break_: Break) -> None:
    break_(KeyboardInterrupt(), 1)
    assert cli("prune", "llama", "--out", "my run", *QUICK).err.endswith("go on with: reprune resume 'my run'\n")
    assert cli("status", "my run").out.endswith("go on with: reprune resume 'my run'\n")
    for command in ("report", "verify"):
        assert "go on with \"reprune resume 'my run'\", then" in cli(command, "my run").err


def test_the_way_on_with_a_file_of_texts_is_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("interrupted\n", "interrupted; finished texts are kept, the same command goes on from there\n"):
        with pytest.raises(typer.Exit), exit_codes(way_on=partial(way_on, tmp_path / "self.jsonl")):
            raise KeyboardInterrupt
        assert capsys.readouterr().err == said
        Corpus(tmp_path / "self.jsonl").open({"model": {}}, 1)


def test_a_run_goes_on_where_nobody_reads_what_it_prints(here: Path) -> None:
    command = [sys.executable, "-m", "reprune", "prune", "llama", "--out", "out", *QUICK]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "nobody reads the output any more; the work goes on without it\n")
    assert reprune.status(here / "out").finished


def test_resume_can_be_quiet_or_verbose(cli: Cli, break_: Break) -> None:
    for flag in ("-q", "-v"):
        break_(KeyboardInterrupt(), 1)
        assert cli("prune", "llama", "--out", f"cut{flag}", *QUICK).code == 1
    said = cli("resume", "cut-q", "-q")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert "epoch 2/2" in cli("resume", "cut-v", "-v").out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NumericalError("block 1, mlp.up_proj: the Gram matrix is not finite"), "block 1, mlp.up_proj: the Gram"),
        (
            MemoryError(),
            "out of memory; 'reprune plan' forecasts a run's memory, which --set solver.micro_batch_size=1, "
            "solver.compact=true or, in windows of several blocks, solver.checkpointing=true lowers",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
            "out of memory (CUDA out of memory. Tried to allocate 20.00 GiB.); 'reprune plan'",
        ),
        (RuntimeError("std::bad_alloc"), "out of memory (std::bad_alloc); 'reprune plan'"),
        (
            RuntimeError("unable to mmap 9 bytes from file <m>: Cannot allocate memory (12)"),
            "out of memory (unable to mmap 9 bytes from file <m>: Cannot allocate memory (12)); 'reprune plan'",
        ),
        (
            RuntimeError("could not create a primitive"),
            "probably out of memory (could not create a primitive); 'reprune plan'",
        ),
        (
            RuntimeError("can't start new thread"),
            "out of memory, or of processes: see 'ulimit -u' (can't start new thread); 'reprune plan'",
        ),
        (
            ImportError("_image.so: failed to map segment from shared object"),
            "out of memory, or a disk mounted with noexec (_image.so: failed to map segment from shared object); 'repr",
        ),
        (OSError(28, "No space left on device", "cut/model-00002"), "No space left on device: cut/model-00002"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_message(error: Exception, message: str, cli: Cli, break_: Break) -> None:
    break_(error, 1)
    said = cli("prune", "llama", "--out", "cut", *QUICK)
    assert said.code == 1
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1
    assert "1 of 3 windows finished" in cli("status", "cut").out
    assert cli("resume", "cut").code == 0


@pytest.mark.parametrize(("device", "there"), [("cuda", 0), ("cuda:2", 2)])
def test_a_run_is_not_resumed_where_its_gpu_is_not(
    device: str, there: int, cli: Cli, here: Path, break_: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_(KeyboardInterrupt(), 0)
    cli("prune", "llama", "--out", "cut", *QUICK, "-q")
    file = here / "cut" / ".reprune" / "run.json"
    job, _ = unseal(file.read_text(), indent=2)
    job["recipe"]["device"] = device
    file.write_text(seal(job, indent=2))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    said = cli("resume", "cut")
    assert (said.code, said.err) == (
        2,
        f"error: cut: this run began on {device}, but this machine has {there or 'no'} CUDA devices; resume it on "
        f"a machine that has {device}.\n",
    )


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a fault"), ImportError("a fault"), RuntimeError("CUDA error: uncorrectable ECC error")]
)
def test_an_error_of_the_program_or_of_a_gpu_is_not_hidden_and_tells_how_to_go_on(
    error: Exception, break_: Break, cli: Cli
) -> None:
    from reprune.doors.command.cli import main

    break_(error, 1)
    with pytest.raises(type(error), match=str(error)) as raised:
        main(["prune", "llama", "--out", "cut", *QUICK])
    told = traceback.format_exception(raised.value)
    assert told[-1] == "finished windows are kept, go on with: reprune resume cut\n"
    assert cli("resume", "cut").code == 0


def test_a_process_that_is_interrupted_from_outside(here: Path, cli: Cli) -> None:
    """In a separate process, by Ctrl-C, in the middle of the second window; test_ranks.py has SIGTERM."""
    command = [*COMMAND, "prune", "llama", "--out", "cut", *QUICK, "--epochs", "400", "-v"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=here, env={**os.environ, **SOURCES}, **pipes) as process:
        assert process.stdout is not None
        seen: list[str] = []
        for line in process.stdout:
            seen.append(line)
            if "    1/3  " in "".join(seen) and "epoch 2/400" in line:
                process.send_signal(signal.SIGINT)
                break
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "reprune resume" in err
    assert err.count("\n") == 1, "one message, no traceback"
    assert "sparse model" not in rest
    assert "1 of 3 windows finished" in cli("status", "cut").out


def test_a_process_of_its_own_ends_with_the_exit_code_of_the_contract(here: Path) -> None:
    command = [*COMMAND, "prune", "./nowhere", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env={**os.environ, **SOURCES})
    assert done.returncode == 2
    assert done.stderr == "error: ./nowhere: no such folder; expected a model folder, a Hub id or a .gguf file.\n"
    assert not (here / "out").exists()
