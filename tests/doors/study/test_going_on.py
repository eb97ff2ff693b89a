"""A study goes on where it was, whatever ended it, and gives the same numbers."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import reprune
from reprune.doors.study import cell as study_cell
from reprune.doors.study.measures import Bench
from reprune.doors.study.record import StudyFolder, read_study
from reprune.doors.study.run import study
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine import fresh as engine
from reprune.errors import ChangedError, InputError, NumericalError
from tests.damage import flip_bit
from tests.doors.conftest import Cli
from tests.doors.study.runs import GRID, ONE, QUICK, SETTINGS, SMALL, STUDY, cell, copy_of, numbers
from tests.engine import together

TWO = [*GRID[:3], "--rungs", "LR", *STUDY]
NAMES = ["magnitude-BR+GP-seed0", "wanda-BR+GP-seed0"]


def stop_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], times: int) -> None:
    """Have a function raise KeyboardInterrupt when `when` has been true of its arguments `times` times."""
    real = getattr(owner, name)
    said = []

    def stopping(*arguments: Any, **more: Any) -> Any:
        if when(*arguments):
            said.append(True)
            if len(said) == times:
                monkeypatch.setattr(owner, name, real)
                raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, stopping)


class Heard(StudyWatcher):
    """Writes down what happens."""

    def __init__(self) -> None:
        self.what: list[str] = []
        self.left: list[float | None] = []

    def started(self, record: Any, axes: str, cells: int, done: int) -> None:
        self.what.append(f"{done} of {cells}")

    def cell_started(self, cell: Any, number: int, of: int) -> None:
        self.what.append(cell["name"])

    def measuring(self, what: str) -> Any:
        self.what.append(what)
        return super().measuring(what)

    def pruning(self) -> Any:
        self.what.append("pruning")
        return super().pruning()

    def cell_ended(self, cell: Any, seconds_left: float | None) -> None:
        self.left.append(seconds_left)


@pytest.mark.parametrize("block", [0, 2])
def test_a_cell_that_was_interrupted_is_resumed(
    block: int, here: Path, whole: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned: list[int] = []
    real = engine.prune_block_
    stop_after = 3 + block  # the first cell's three blocks, then some of the second's

    def prune_block_(fresh: Any, *rest: Any, **more: Any) -> Any:
        if len(pruned) == stop_after:
            pruned.append(-1)
            raise KeyboardInterrupt
        pruned.append(fresh.index)
        return real(fresh, *rest, **more)

    monkeypatch.setattr(engine, "prune_block_", prune_block_)
    flags = [*GRID[:3], "--rungs", "BR+GP", *STUDY]
    cut = cli("study", "llama", "--out", "s", *flags)
    assert (cut.code, cut.err) == (1, "interrupted; what is done is kept, the same command goes on from there\n")
    assert [each["status"] for each in read_study(here / "s")["cells"]] == ["done", "pending"]
    assert [line.split(",")[0] for line in (here / "s" / "study.csv").read_text().splitlines()[1:]] == NAMES

    rest = cli("study", "llama", "--out", "s", *flags)
    assert (rest.code, rest.err) == (0, "")
    assert "2 cells; 1 done before\n" in rest.out
    assert re.findall(r"^(\d/2) (\w+)", rest.out, re.MULTILINE) == [("2/2", "wanda")]
    assert [index for index in pruned if index >= 0] == [0, 1, 2, 0, 1, 2], "no block twice"
    assert numbers(read_study(here / "s")) == numbers(read_study(whole))
    assert read_study(here / "s")["dense"] == read_study(whole)["dense"]


def test_a_cell_goes_on_with_the_model_that_its_study_is_given(
    here: Path, whole: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "llama").unlink()
    shutil.copytree(llama, here / "llama")
    stop_at(monkeypatch, engine, "prune_block_", lambda *_: True, times=5)
    with pytest.raises(KeyboardInterrupt):
        study("llama", "s", **SMALL, **SETTINGS)
    (here / "llama").rename(here / "renamed")
    assert numbers(study("renamed", "s", **SMALL, **SETTINGS)) == numbers(read_study(whole))


@pytest.mark.parametrize("measure", ["perplexity", "errors"])
def test_what_is_measured_is_not_measured_again(
    measure: str, here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interrupt at the second text of the second cell, or of the dense model, only what is missing is done."""
    stop_at(monkeypatch, Bench, measure, lambda self, model, *_: Path(model).name in ("llama", NAMES[1]), times=2)
    with pytest.raises(KeyboardInterrupt):
        study("llama", "s", **SMALL, **SETTINGS)
    heard = Heard()
    study("llama", "s", **SMALL, **SETTINGS, watcher=heard)
    steps = [f"{kind}, {text}" for text in ("test.txt", "manual") for kind in ("perplexity", "test error")]
    if measure == "perplexity":
        assert heard.what == [
            *("0 of 2", "dense, manual"),
            *(NAMES[0], "pruning", *steps, NAMES[1], "pruning", *steps),
        ]
        assert heard.left[0] is not None and heard.left[0] > 0
        assert heard.left[-1] == 0
    else:
        assert heard.what == ["1 of 2", NAMES[1], "test error, manual"]
    assert numbers(read_study(here / "s")) == numbers(read_study(whole))


@pytest.mark.parametrize("measured", ["llama", NAMES[1]])
def test_a_model_that_changes_on_the_way_ends_the_study_which_goes_on_with_what_was_there(
    measured: str, here: Path, whole: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes while the dense model or the second cell is measured; that measure is not recorded."""
    (here / "llama").unlink()
    file = shutil.copytree(llama, here / "llama") / "model.safetensors"
    last, real = file.stat().st_size - 1, Bench.perplexity

    def perplexity(self: Bench, model: Any, *rest: Any) -> Any:
        if Path(model).name == measured:
            flip_bit(file, last)
        return real(self, model, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "perplexity", perplexity)
        with pytest.raises(
            ChangedError, match=r"model\.safetensors: was changed or replaced .* the same command goes on"
        ):
            study("llama", "s", **SMALL, **SETTINGS)
    record = read_study(here / "s")
    left = ["pending", "pending"] if measured == "llama" else ["done", "pending"]
    assert [each["status"] for each in record["cells"]] == left
    assert len(record["dense"]["perplexity"]) == 2 * left.count("done")
    assert not record["cells"][1]["perplexity"]
    flip_bit(file, last)
    study("llama", "s", **SMALL, **SETTINGS)
    assert numbers(read_study(here / "s")) == numbers(read_study(whole))


def test_a_cell_of_another_model_than_the_studys_has_failed(here: Path, whole: Path) -> None:
    """Such as when a node of a cluster has another model under the same path."""
    folder = copy_of(whole, here)
    record = read_study(folder)
    record["cells"][1]["status"] = "pending"
    StudyFolder(folder).save(record)
    path = folder / "cells" / NAMES[1] / "reprune.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "model": {**run["model"], "fingerprint": "0"}}))
    (done, failed) = study("llama", "s", **SMALL, **SETTINGS)["cells"]
    assert (done["status"], failed["status"]) == ("done", "failed")
    assert f"remove cells/{NAMES[1]} to begin this cell anew" in str(failed["error"])
    shutil.rmtree(folder / "cells" / NAMES[1])
    study("llama", "s", **SMALL, **SETTINGS)
    assert numbers(read_study(folder)) == numbers(read_study(whole))


def test_an_end_between_the_removal_of_the_weights_and_its_record_costs_nothing(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(whole, here)
    record = read_study(folder)
    record["cells"][1]["status"] = "pending"
    StudyFolder(folder).save(record)
    heard = Heard()
    study("llama", "s", **SMALL, **SETTINGS, watcher=heard)
    assert heard.what == ["1 of 2", NAMES[1]]
    assert numbers(read_study(folder)) == numbers(read_study(whole))


def test_models_that_went_do_not_come_back_and_it_is_said(here: Path, whole: Path) -> None:
    folder = copy_of(whole, here)
    notes: list[str] = []
    heard = Heard()
    heard.note = notes.append  # type: ignore[method-assign]
    study("llama", "s", **SMALL, **SETTINGS, watcher=heard)
    assert not notes
    study("llama", "s", **SMALL, **SETTINGS, keep_models=True, watcher=heard)
    assert heard.what == ["2 of 2"] * 2
    assert ["models of 2 of 2 cells were removed when they were measured" in note for note in notes] == [True]
    assert str(Path("s") / "cells" / NAMES[0] / "recipe.yaml") in notes[0]
    assert (folder / "cells" / NAMES[0] / "recipe.yaml").exists()


@pytest.mark.parametrize("left", ["no weights", "no ledger yet"])
def test_a_run_that_cannot_be_gone_on_with_begins_anew(left: str, here: Path, whole: Path) -> None:
    folder = copy_of(whole, here)
    record = read_study(folder)
    record["cells"][1]["status"] = "pending"
    old = {"accuracy": 0.5, "standard_error": None, "examples": 1}  # what follows is of the run that is gone
    record["cells"][1] |= dict.fromkeys(("seconds", "calibration_error", "measuring_seconds"), 1e9)
    record["cells"][1] |= {"perplexity": {"test.txt": 99.0}, "zero_shot": {"rte": old}, "zero_shot_mean": 0.5}
    StudyFolder(folder).save(record)
    if left == "no ledger yet":
        shutil.rmtree(folder / "cells" / NAMES[1])
        (folder / "cells" / NAMES[1] / ".reprune").mkdir(parents=True)
        (folder / "cells" / NAMES[1] / ".reprune" / "samples.safetensors").write_bytes(b"cut short")
    study("llama", "s", **SMALL, **SETTINGS)
    assert numbers(read_study(folder)) == numbers(read_study(whole))
    assert cell(folder, NAMES[1])["measuring_seconds"] < 1e9
    assert {path.name for path in (folder / "cells" / NAMES[1]).iterdir()} == {"reprune.json", "recipe.yaml"}


def test_a_cell_that_was_begun_with_code_of_the_models_runs_none_that_the_study_is_not_given(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a study of somebody else's, whose cell may name any folder as the model's."""
    folder = copy_of(whole, here)
    record = read_study(folder)
    record["cells"][1] |= {"status": "pending", "blocks": []}
    StudyFolder(folder).save(record)
    out = folder / "cells" / NAMES[1]
    shutil.rmtree(out)
    stop_at(monkeypatch, engine, "prune_block_", lambda *_: True, 2)
    with pytest.raises(KeyboardInterrupt):
        reprune.prune("llama", out, pruner="wanda", reconstruct="BR+GP", trust_remote_code=True, **QUICK)
    (done, failed) = study("llama", "s", **SMALL, **SETTINGS)["cells"]
    assert (done["status"], failed["status"]) == ("done", "failed")
    assert "began with trust_remote_code; give --trust-remote-code if you trust the model's code. (Remove " in str(
        failed["error"]
    )
    assert not (out / "reprune.json").exists()


def _killed(*arguments: str) -> None:
    """The command line, killed when it prunes the second block of its second cell."""
    pruned, prune = [0], engine.prune_block_

    def pruning(*given: Any, **more: Any) -> Any:
        pruned[0] += 1
        if pruned[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return prune(*given, **more)

    engine.prune_block_ = pruning
    together.command(*arguments)


def test_a_killed_process_is_gone_on_with(here: Path, whole: Path, cli: Cli) -> None:
    """In a separate process, by a signal that cannot be caught, in the middle of the second cell."""
    flags = [*GRID[:3], "--rungs", "BR+GP", *STUDY]
    ended = together.start_alone(_killed, "study", "llama", "--out", "s", *flags, "-v").wait(120)
    assert ended.code == -signal.SIGKILL, ended.err
    assert [each["status"] for each in read_study(here / "s")["cells"]] == ["done", "pending"]
    rest = cli("study", "llama", "--out", "s", *flags, "-v")
    assert (rest.code, rest.err) == (0, "")
    assert "going on: " in rest.out
    assert numbers(read_study(here / "s")) == numbers(read_study(whole))
    assert {path.name for path in (here / "s").iterdir()} == {"study.json", "study.md", "study.csv", "cells"}


def test_more_values_of_an_axis_are_welcome_and_fewer_leave_the_others_alone(here: Path, whole: Path, cli: Cli) -> None:
    folder = copy_of(whole, here)
    before = {cell["name"]: cell for cell in read_study(folder)["cells"]}
    more = ["--pruners", "magnitude", "--rungs", "LR", "BR+GP", "--seeds", "0", "1", *STUDY]
    said = cli("study", "llama", "--out", "s", *more)
    assert (said.code, said.err) == (0, "")
    assert "1 pruner x 2 rungs x 2 seeds = 4 cells; 1 done before\n" in said.out
    after = {cell["name"]: cell for cell in read_study(folder)["cells"]}
    assert list(after) == [*("magnitude-LR-seed0", *NAMES, "magnitude-LR-seed1", "magnitude-BR+GP-seed1")], (
        "in the order of the grid"
    )
    assert {name: after[name] for name in before} == before
    assert read_study(folder)["data"].keys() == {"0", "1"}
    assert "means over the seeds" in said.out
    fewer = cli("study", "llama", "--out", "s", "--pruners", "wanda", "--rungs", "BR+GP", *STUDY)
    assert (fewer.code, fewer.err) == (0, "")
    assert "1 pruner x 1 rung = 1 cell; 1 done before\n" in fewer.out
    assert {cell["name"]: cell for cell in read_study(folder)["cells"]} == after


def test_a_failed_cell_does_not_end_the_study_and_is_tried_again(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = study_cell.prune_by_recipe

    def broken(recipe: Any, *rest: Any, **more: Any) -> Any:
        if recipe.pruner.name == "magnitude" and recipe.reconstruct == "LR":
            raise NumericalError("block 1: the Gram matrix is not finite")
        return real(recipe, *rest, **more)

    with monkeypatch.context() as bad:
        bad.setattr(study_cell, "prune_by_recipe", broken)
        said = cli("study", "llama", "--out", "s", *TWO)
    assert said.code == 1
    assert said.err.splitlines() == [
        "error: cell magnitude-LR-seed0: block 1: the Gram matrix is not finite",
        "1 of 2 cells failed; what is done is kept, the same command tries them again",
    ]
    assert "1/2 magnitude LR, seed 0\n  failed: block 1: the Gram matrix is not finite\n" in said.out
    record = read_study(here / "s")
    assert [each["status"] for each in record["cells"]] == ["failed", "done"]
    assert record["cells"][0]["error"] == "block 1: the Gram matrix is not finite"
    page = (here / "s" / "study.md").read_text()
    assert "- magnitude-LR-seed0: block 1: the Gram matrix is not finite\n" in page
    assert "| magnitude | LR | - | - |" in page
    assert "Cells: 1 done, 1 failed." in page

    again = cli("study", "llama", "--out", "s", *TWO)
    assert (again.code, again.err) == (0, "")
    assert "2 cells; 1 done before\n" in again.out
    assert re.findall(r"^(\d)/2", again.out, re.MULTILINE) == ["1"]
    assert [each["status"] for each in read_study(here / "s")["cells"]] == ["done"] * 2
    assert cell(here / "s", "magnitude-LR-seed0")["error"] is None


def test_a_fault_of_the_program_is_shown_whole_and_does_not_end_the_study(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Bench.errors

    def broken(self: Bench, sparse: Path, *rest: Any) -> Any:
        return [][1] if sparse.name.startswith("magnitude") else real(self, sparse, *rest)

    monkeypatch.setattr(Bench, "errors", broken)
    said = cli("study", "llama", "--out", "s", *TWO)
    assert said.code == 1
    assert "Traceback" in said.err
    assert "error: cell magnitude-LR-seed0: IndexError: list index out of range\n" in said.err
    assert [each["status"] for each in read_study(here / "s")["cells"]] == ["failed", "done"]
    monkeypatch.setattr(sys, "stderr", None)  # if it is closed
    assert "Traceback" not in cli("study", "llama", "--out", "s", *TWO).out


def test_an_error_on_record_names_no_folder_of_this_machine(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = here / "jane-doe" / "s"
    for error, expected in (
        (PermissionError(13, "Permission denied", str(out / "cells" / "model-2")), "Permission denied: model-2"),
        (InputError(f"{out}/cells/LR-seed0: damaged,\nstart again"), "LR-seed0: damaged, start again"),
    ):

        def broken(*rest: Any, error: Exception = error, **more: Any) -> Any:
            raise error

        monkeypatch.setattr(study_cell, "prune_by_recipe", broken)
        record = study("llama", out, pruners=["magnitude"], rungs=["LR"], **SETTINGS)
        assert str(here) not in json.dumps(record)
        assert record["cells"][0]["error"] == expected


def test_a_full_disk_ends_the_study_and_room_lets_it_go_on(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the disk, or of a quota."""
    for number in (errno.EDQUOT, errno.ENOSPC):
        error = OSError(number, os.strerror(number), "s/cells/model-00002")
        with monkeypatch.context() as full:
            full.setattr(study_cell, "prune_by_recipe", Mock(side_effect=error))
            said = cli("study", "llama", "--out", "s", *ONE, *STUDY)
        assert said.code == 1
        assert said.err.startswith("error: ")
        assert os.strerror(number) in said.err
        assert said.err.endswith("; what is done is kept, the same command goes on from there\n")
        assert said.err.count("\n") == 1
    assert [each["status"] for each in read_study(here / "s")["cells"]] == ["pending"]
    assert cli("study", "llama", "--out", "s", *ONE, *STUDY).code == 0


def test_what_a_process_left_that_was_killed_before_its_study_began_is_no_hindrance(here: Path, cli: Cli) -> None:
    (here / "s").mkdir()
    (here / "s" / ".study.json.tmp").write_text('{"kind":')
    said = cli("study", "llama", "--out", "s", *ONE, *STUDY)
    assert (said.code, said.err) == (0, "")
    assert {path.name for path in (here / "s").iterdir()} == {"study.json", "study.md", "study.csv", "cells"}
