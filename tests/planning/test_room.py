"""Errors on a full disk name the library files that filled it, and memory that ran out is not called damage."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pytest
from py3langid.langid import LanguageIdentifier

from reprune.planning.generation import language
from reprune.planning.room import no_room
from reprune.planning.sources import load_documents


def _full(number: int) -> Callable[..., NoReturn]:
    def call(*arguments: Any, **settings: Any) -> NoReturn:
        try:
            raise OSError(number, "full")
        except OSError as error:
            raise RuntimeError("an error occurred while generating the dataset") from error

    return call


@pytest.mark.parametrize(
    ("number", "folder"),
    [
        (errno.ENOSPC, "with room"),
        (errno.EFBIG, "with room"),
        (errno.EDQUOT, "with room"),
        (errno.ENOLCK, "on another disk"),
    ],
)
def test_rows_without_room_or_locks_for_their_copy_are_not_damaged(
    number: int, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setattr(datasets, "load_dataset", _full(number))
    with pytest.raises(OSError, match=f"set TMPDIR to a folder {folder}") as error:
        load_documents(str(tmp_path / "t.jsonl"), "train")
    assert (error.value.errno, error.value.filename) == (number, tempfile.gettempdir())


@pytest.mark.parametrize("lacking", [MemoryError("malloc of size 9 failed"), RuntimeError("can't start new thread")])
def test_rows_for_which_there_is_no_memory_or_thread_are_not_damaged(
    lacking: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> NoReturn:
        try:
            raise lacking
        except (MemoryError, RuntimeError) as error:
            raise ValueError("an error occurred while generating the dataset") from error

    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(type(lacking)) as raised:
        load_documents(str(tmp_path / "t.jsonl"), "train")
    assert raised.value is lacking


def test_a_full_cache_of_the_hubs_data_sets_is_where_hf_home_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", _full(errno.ENOSPC))
    with pytest.raises(OSError, match="set HF_HOME to a folder with room") as error:
        load_documents("org/name", "train")
    assert error.value.filename == str(datasets.config.HF_DATASETS_CACHE)


def test_a_language_identifier_without_room_to_unpack_itself_names_the_folder_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: Any, **settings: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(LanguageIdentifier, "from_model_file", full)
    with pytest.raises(OSError, match="set TMPDIR to a folder with room"):
        language._identifier.__wrapped__()


def test_any_other_error_stays_as_it_is() -> None:
    assert no_room(OSError(errno.EACCES, "no")) is None
    assert no_room(ValueError("rows")) is None
