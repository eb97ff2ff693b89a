"""What a study has on record is whole and stays, whatever fails or comes between while more is written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprune.doors.study import run as doors
from reprune.doors.study.begin import Begun, begin
from reprune.doors.study.hands import InTurn
from reprune.doors.study.measures import Bench
from reprune.doors.study.record import StudyFolder, read_apart, read_study, save_apart
from reprune.doors.study.run import study
from reprune.engine.dense import DenseStream
from reprune.errors import ChangedError, HalfPrecisionError
from tests.doors.demo.test_model import write_gguf
from tests.doors.study.runs import SETTINGS, SMALL, copy_of
from tests.doors.study.test_going_on import Heard


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_record_that_cannot_be_written_whole_leaves_the_one_before(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder(copy_of(whole, here))
    record = read_study(folder.path)
    cell = record["cells"][0]
    folder.apart.mkdir()
    save_apart(folder.apart, cell)
    write = Path.write_text

    def half(path: Path, text: str, **options: Any) -> None:
        write(path, text[: len(text) // 2], **options)
        _full()

    monkeypatch.setattr(Path, "write_text", half)
    for save in (lambda: folder.save({**record, "cells": []}), lambda: save_apart(folder.apart, cell)):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            save()
    assert read_study(folder.path) == record
    assert read_apart(folder.apart, cell["name"]) == cell


def test_what_workers_left_is_removed_only_once_it_is_on_record(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder(copy_of(whole, here))
    cell = read_study(folder.path)["cells"][0]
    folder.apart.mkdir()
    save_apart(folder.apart, cell)
    monkeypatch.setattr(StudyFolder, "save", _full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        study("llama", "s", **SMALL, **SETTINGS)
    assert read_apart(folder.apart, cell["name"]) == cell


def test_a_study_that_another_process_has_done_meanwhile_is_not_begun_anew(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as while this one downloaded the model."""

    def after_the_other(*given: Any) -> Begun:
        begun = begin(*given)
        if not (here / "s").exists():
            copy_of(whole, here)
        return begun

    monkeypatch.setattr(doors, "begin", after_the_other)
    heard = Heard()
    assert study("llama", "s", **SMALL, **SETTINGS, watcher=heard) == read_study(whole)
    assert heard.what == ["2 of 2"]


def test_a_study_whose_cells_have_all_begun_needs_no_more_room(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(whole, here)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert study("llama", "s", **SMALL, **SETTINGS) == read_study(whole)


def test_measures_of_the_dense_model_are_all_in_one_precision(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only its second text shows that it cannot be run in half precision, the first is measured again."""
    monkeypatch.setattr("reprune.doors.devices._cpu_multiplies", lambda _: True)
    real = Bench.perplexity

    def perplexity(self: Bench, model: Any, text: Any, *rest: Any) -> Any:
        if text.name == "manual" and self.precision == "bfloat16":
            raise HalfPrecisionError("the model has code of its own")
        return real(self, model, text, *rest)

    monkeypatch.setattr(Bench, "perplexity", perplexity)
    monkeypatch.setattr(InTurn, "do", lambda *_: iter(()))
    dense = study("llama", "s", **SMALL, **{**SETTINGS, "settings": []})["dense"]
    assert dense == read_study(whole)["dense"]


def test_a_gguf_file_that_is_replaced_meanwhile_ends_the_study(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the folder that it was converted to is as it was: the next model to be read would be another."""
    write_gguf(here / "tiny.gguf")
    real = Bench.perplexity

    def perplexity(*given: Any) -> Any:
        os.utime(here / "tiny.gguf", (0, 0))
        return real(*given)

    monkeypatch.setattr(Bench, "perplexity", perplexity)
    with pytest.raises(ChangedError, match=r"tiny\.gguf: was changed or replaced"):
        study("tiny.gguf", "s", **SMALL, **SETTINGS)
    assert not read_study(here / "s")["dense"]["perplexity"]


def test_cells_with_the_same_samples_compute_the_dense_models_stream_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = DenseStream._compute
    monkeypatch.setattr(
        DenseStream, "_compute", lambda self, block: computed.append(block.index) or compute(self, block)
    )
    study("llama", "s", pruners=["magnitude", "wanda"], rungs=["LR"], **SETTINGS)
    assert computed == [0, 1, 2]
