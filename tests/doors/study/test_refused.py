"""What cannot be studied, or differs from how a study was begun, is refused by name, and nothing is changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import reprune
from reprune.doors.study.hands import InTurn
from reprune.doors.study.measures import Bench
from reprune.doors.study.record import StudyFolder, differences
from reprune.doors.study.run import study
from reprune.errors import InputError
from reprune.files.durable import write_text
from tests import tiny
from tests.doors.conftest import QUICK, Cli
from tests.doors.study.runs import GRID, MEASURES, ONE, SETTINGS, SMALL, STUDY, TEXTS, copy_of


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 7}, "samples 6, now 7[.] "),
        ({"epochs": 3, "lr": 0.1}, "solver.epochs 2, now 3; solver.lr 0.001, now 0.1[.] "),
        ({"sparsity": "2:4"}, "sparsity 0.5, now 2:4[.] "),
        ({"seqlen": 20}, "seqlen 24, now 20[.] "),
        ({"heldout": "manual"}, "heldout none, now manual[.] "),
        ({"settings": ["precision=bfloat16"]}, "precision float32, now bfloat16[.] "),
        ({"texts": ["test.txt"]}, "measure texts.manual [0-9a-f]{12}, now none[.] "),
        ({"windows": 3}, "measure windows 4, now 3[.] "),
        ({"text_seqlen": 16}, "measure seqlen 32, now 16[.] "),
    ],
)
def test_other_settings_are_refused_by_name(changed: dict[str, Any], message: str, here: Path, whole: Path) -> None:
    folder = copy_of(whole, here)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"this study was begun with other settings: {message}"):
        study("llama", "s", **SMALL, **{**SETTINGS, **changed})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_another_order_of_names_is_refused_as_the_first_that_fits_decides(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InTurn, "do", lambda *_: iter(()))
    one, other, more = "mlp.*: 0.3", "down_proj: 0.4", "up_proj: 0.6"

    def go_on(*names: str) -> None:
        settings = ["precision=float32", f"sparsity_by_name={{{', '.join(names)}}}"]
        study("llama", "s", pruners=["magnitude"], rungs=["LR"], **{**SETTINGS, "settings": settings})

    go_on(one, other)
    go_on(one, other)
    said = r"settings: order of sparsity_by_name mlp[.][*] down_proj, now down_proj mlp[.][*][.] Give"
    with pytest.raises(InputError, match=said):
        go_on(other, one)
    with pytest.raises(InputError, match=r"settings: sparsity_by_name.up_proj none, now 0[.]6[.] Give"):
        go_on(one, more, other)


def test_an_empty_list_is_said_as_none() -> None:
    now = {"include": [], "heldout": [], "solver": {"epochs": 2}}
    assert differences({**now, "heldout": ["a"]}, now) == ["heldout a, now none"]
    assert differences(now, {**now, "include": ["0.*"]}) == ["include none, now 0.*"]


def test_another_model_another_version_or_another_text_of_the_same_name_is_refused(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(whole, here)
    tiny.save("qwen2", here / "other" / "llama")
    with pytest.raises(InputError, match=r"settings: model fingerprint [0-9a-f]{12}, now [0-9a-f]{12}"):
        study(here / "other" / "llama", "s", **SMALL, **SETTINGS)
    for name, message in (("text.txt", "a calibration text has changed"), ("test.txt", "measure texts.test.txt ")):
        text = (here / name).read_text()
        (here / name).write_text(text.replace("the", "teh"))
        with pytest.raises(InputError, match=message):
            study("llama", "s", **SMALL, **SETTINGS)
        (here / name).write_text(text)
    record = json.loads((folder / "study.json").read_text())
    record["versions"]["torch"] = "1.0"
    write_text(folder / "study.json", json.dumps(record))
    with pytest.raises(InputError, match=r"settings: version of torch 1\.0, now "):
        study("llama", "s", **SMALL, **SETTINGS)


def test_another_tokenizer_is_refused_by_its_file(here: Path, llama: Path, whole: Path) -> None:
    """Also if it gives the same tokens for the calibration texts."""
    copy_of(whole, here)
    (here / "llama").unlink()
    tokenizer = shutil.copytree(llama, here / "llama") / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(InputError, match=r"settings: model files\.tokenizer\.json [0-9a-f]{12}, now [0-9a-f]{12}[.] "):
        study("llama", "s", **SMALL, **SETTINGS)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"kind": "something else"}',
        '{"kind": "reprune study", "format": 2}',
        '{"kind": "reprune study", "format": 1}',
    ],
)
def test_a_record_that_cannot_be_read_is_named(damage: str, here: Path, cli: Cli) -> None:
    (here / "s").mkdir()
    (here / "s" / "study.json").write_text(damage)
    said = cli("study", "llama", "--out", "s", *ONE, *STUDY)
    assert said.code == 2
    assert said.err.startswith("error: s/study.json: this version of reprune cannot read it as a study (")
    assert (here / "s" / "study.json").read_text() == damage


def test_a_value_of_another_type_is_named(here: Path, whole: Path) -> None:
    path = copy_of(whole, here) / "study.json"
    record = json.loads(path.read_text())
    record["cells"][1]["blocks"] = 5
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"read it as a study \(cells\.1\.blocks: input should be a valid tuple"):
        study("llama", "s", **SMALL, **SETTINGS)


def test_a_second_process_is_refused(here: Path, whole: Path, cli: Cli) -> None:
    copy_of(whole, here)
    flags = [*GRID[:3], "--rungs", "BR+GP", *STUDY]
    with StudyFolder(here / "s").held():
        said = cli("study", "llama", "--out", "s", *flags)
    assert said.code == 2
    assert said.err == "error: s: another process is working on this study; wait for it or stop it.\n"
    assert cli("study", "llama", "--out", "s", *flags).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pruners", "wander"], "--pruners: expected magnitude, wanda or sparsegpt, or a pruner that an installed "),
        (["--pruners", "wander"], " package brings (got 'wander'); did you mean wanda?"),
        (["--rungs", "LR", "BG"], "--rungs BG: expected LR, "),
        (["--only", "ffn"], "--only ffn: expected all, attention or mlp"),
        (["--seeds", "-1"], "cell magnitude-LR-seed-1: seed: input should be greater than or equal to 0"),
        (["--seeds", "one"], "Invalid value for '--seeds'"),
        (["--seeds=-1"], "seed: "),
        (["--text", "missing.txt"], "missing.txt"),
        (["--text", "short.txt"], "text 'short.txt': expected at least"),
        (["--text", "test.txt=3"], "takes no COUNT"),
        (["--text", "other/test.txt", "test.txt"], "another text is called test.txt too"),
        (["--calibration", "short.txt"], "source 'short.txt'"),
        (["--calibration", "missing.txt"], "missing.txt"),
        (["--sparsity", "3:5"], "3:5"),
        (["--set", "seed=3"], "--seeds decides that"),
        (["--set", "sampels=3"], "did you mean samples?"),
        (["--set", "guard=off", "--rungs", "auto"], "cell magnitude-auto-seed0: "),
        (["--windows", "0"], "--windows 0: expected at least 1"),
        (["--text-seqlen", "4096"], "4096"),
        (["--protocol", "papre"], "papre"),
        (["--zero-shot", "nonsense"], "--zero-shot nonsense: no such task"),
        (["--zero-shot", "boolq", "--zero-shot-data", "nowhere"], "nowhere"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--self-generate", "1000000000000"], "--out s: a run writes about "),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_written_where_something_cannot_be_used(
    there: bool, arguments: list[str], message: str, here: Path, cli: Cli
) -> None:
    (here / "short.txt").write_text("too short")
    (here / "other").mkdir()
    shutil.copy(here / "test.txt", here / "other")
    if there:
        (here / "s").mkdir()
    before = sorted(here.rglob("*"))
    flags = [*ONE, *QUICK, *TEXTS]
    for flag in arguments:  # replaces the flag that is there
        if flag in ("--text", "--calibration", "--pruners", "--rungs"):
            first = flags.index(flag)
            after = next((n for n, word in enumerate(flags) if n > first and word.startswith("--")), len(flags))
            del flags[first:after]
    said = cli("study", "llama", "--out", "s", *flags, *arguments)
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert sorted(here.rglob("*")) == before


def test_a_disk_on_which_only_some_rungs_fit_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rung with larger windows, more streams are on disk."""
    settings = {**SETTINGS, "settings": ["precision=float32", "streams.memory=0"]}
    run = {name: value for name, value in settings.items() if name not in MEASURES}
    rungs = ["BR+GP", "BR+GP+CR"]
    less, more = (reprune.plan("llama", reconstruct=rung, **run).forecast.disk_bytes for rung in rungs)
    assert less < more
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=more - 1))
    with pytest.raises(InputError, match=r"^--out s: a run writes about "):
        study("llama", "s", pruners=["magnitude"], rungs=rungs, **settings)
    assert not (here / "s").exists()


@pytest.mark.parametrize("out", ["text.txt", "llama", "text.txt/s"])
def test_a_folder_of_something_else_is_left_alone(out: str, here: Path, cli: Cli) -> None:
    before = sorted(here.rglob("*"))
    said = cli("study", "llama", "--out", out, *ONE, *STUDY)
    assert said.code == 2
    assert said.err.startswith(f"error: --out {out}: ")
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", ["name", "folder"])
def test_a_cell_is_nowhere_but_in_its_own_folder(name: str, here: Path, whole: Path, cli: Cli) -> None:
    path = copy_of(whole, here) / "study.json"
    record = json.loads(path.read_text())
    record["cells"][0] |= {"status": "pending", "blocks": [], name: str(here / "other")}
    path.write_text(json.dumps(record))
    (here / "other").mkdir()
    (here / "other" / "mine.txt").write_text("mine")
    said = cli("study", "llama", "--out", "s", *GRID, *STUDY)
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert said.err.startswith("error: s/study.json: this version of reprune cannot read it as a study")
    assert (here / "other" / "mine.txt").exists()


@pytest.mark.parametrize(("key", "lost"), [("settings", "pruner"), ("dense", "perplexity"), ("dense", "zero_shot")])
def test_a_record_that_lacks_what_a_study_goes_on_from_is_refused(key: str, lost: str, here: Path, whole: Path) -> None:
    file = copy_of(whole, here) / "study.json"
    record = json.loads(file.read_text())
    del record[key][lost]
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"cannot read it as a study \({key}\.{lost}(: field required| is missing)\)"):
        study("llama", "s", **SMALL, **SETTINGS)


@pytest.mark.parametrize("name", ["cells", "cells/magnitude-BR+GP-seed0", "figures", ".cells"])
def test_what_is_behind_a_link_is_refused_as_it_would_be_removed(name: str, here: Path, whole: Path) -> None:
    link = copy_of(whole, here) / name
    link.mkdir(exist_ok=True)
    link.rename(here / "other")
    link.symlink_to(here / "other")
    with pytest.raises(InputError, match=rf"s/{re.escape(name)} is a link to .*/other; put a folder in its place"):
        study("llama", "s", **SMALL, **SETTINGS)


@pytest.mark.parametrize("key", ["texts", "calibration", "heldout", "zero_shot_data"])
def test_a_name_that_no_table_can_hold_is_refused(key: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only a link to it is given, if what it leads to is what goes on record."""
    name = os.fsdecode(b"caf\xe9.txt")
    (here / "text.txt").rename(here / name)
    (here / "text.txt").symlink_to(name)
    monkeypatch.setattr("reprune.doors.study.measures.check_tasks", lambda *_, **__: None)
    monkeypatch.setattr(Bench, "tasks", lambda *_: {})
    linked = key in ("texts", "zero_shot_data")
    given = {**SETTINGS, "texts": "manual", "zero_shot": "boolq", key: "text.txt" if linked else name}
    with pytest.raises(
        InputError, match=rf"^{name}: has bytes that are not UTF-8, in which tables are written; rename it"
    ):
        study("llama", "s", **SMALL, **given)
    assert not (here / "s").exists()
