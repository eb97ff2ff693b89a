"""In a folder written by `save_to_disk`, only the files in its own lists are read."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pytest

from reprune.errors import InputError
from reprune.planning.sources import load_documents


def test_a_data_set_that_was_saved_is_read_as_one_split(tmp_path: Path) -> None:
    for name in ("saved", "saved[1]"):
        rows = datasets.Dataset.from_list([{"text": f"text {index}", "body": "b"} for index in range(4)])
        rows.save_to_disk(str(tmp_path / name), num_shards=2)
        (tmp_path / name / "cache-0123.arrow").write_bytes(b"of a map over it")
        for split in ("train", "test"):
            found = load_documents(f"{tmp_path}/{name}", split)  # type: ignore[arg-type]  # one of Split
            assert (list(found), found.name) == ([f"text {index}" for index in range(4)], name)
        assert list(load_documents(f"{tmp_path}/{name}:::body", "train")) == ["b"] * 4


def test_of_several_splits_each_is_read_without_the_caches_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "saved[1]"
    texts = {"train_sft": ["a", "b"], "train_gen": ["c"], "test": ["d"]}
    splits = {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in texts.items()}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    for name in texts:
        rows = (folder / name / "data-00000-of-00001.arrow").read_bytes()
        (folder / name / "cache-0123.arrow").write_bytes(rows)  # as left by `map`
    assert list(load_documents(str(folder), "test")) == ["d"]
    for named, expected in (("train_sft", "ab"), ("train_gen + test", "cd"), ("all", "abcd")):
        assert list(load_documents(f"{folder}::{named}", "train")) == list(expected)
    for named in ("", "::train", "::test+train"):
        with pytest.raises(InputError, match=r"there \(train_sft, train_gen, test\), but got 'train'; name one"):
            load_documents(f"{folder}{named}", "train")
    remedy = "leave it out, or name a split as in FOLDER::SPLIT, a column as in FOLDER:::COLUMN"
    with pytest.raises(InputError, match=rf"expected no configuration, .* but got 'test'; {remedy}$"):
        load_documents(f"{folder}:test", "test")
    (folder / "test" / "state.json").unlink()
    with pytest.raises(InputError, match=r"expected test/state\.json to list the split's files"):
        load_documents(str(folder), "test")


def test_a_split_is_one_place_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]})).save_to_disk(str(tmp_path))
    found = {load_documents(f"{tmp_path}{named}", "train").places for named in ("", "::train", ":default", "/train")}
    assert len(found) == 1


@pytest.mark.parametrize(("named", "own"), [(None, "train"), (datasets.Split.VALIDATION, "validation")])
def test_a_data_set_that_was_saved_alone_has_no_split_but_its_own(
    tmp_path: Path, named: datasets.NamedSplit | None, own: str
) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}, split=named).save_to_disk(str(tmp_path))
    found = {load_documents(f"{tmp_path}{part}", "test").places for part in ("", f"::{own}", "::all", ":::text")}
    assert len(found) == 1
    for other in ("test", f"{own}+test"):
        with pytest.raises(
            InputError, match=rf"expected '{own}', the only split .* got '{re.escape(other)}'; leave it"
        ):
            load_documents(f"{tmp_path}::{other}", "train")


@pytest.mark.parametrize(
    ("saved", "own"), [("train[:50%]", "train"), ("train+train", "train"), ("train[:9]+test[5:]", "test+train")]
)
def test_a_data_set_that_was_saved_of_parts_of_splits_has_their_names(tmp_path: Path, saved: str, own: str) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}, split=datasets.NamedSplit("x")).save_to_disk(str(tmp_path))
    state = tmp_path / "state.json"
    state.write_text(state.read_text().replace('"x"', f'"{saved}"'))  # as if load_dataset had been asked for it
    assert list(load_documents(f"{tmp_path}::{own}", "test")) == ["a"]
    with pytest.raises(InputError, match=r"the only split .* got 'test'; leave it"):
        load_documents(f"{tmp_path}::test", "test")


def test_a_split_of_several_goes_by_its_name_among_them(tmp_path: Path) -> None:
    """`train_test_split` gives both parts the name of the split that they are parts of."""
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]}, split=datasets.Split.TRAIN)
    rows.train_test_split(1, shuffle=False).save_to_disk(str(tmp_path))
    assert list(load_documents(f"{tmp_path}/test::test", "train")) == ["b"]
    with pytest.raises(InputError, match=r"expected 'test', the only split .* got 'train'; leave it"):
        load_documents(f"{tmp_path}/test::train", "train")


def test_shards_of_an_earlier_save_are_left_aside(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    for shards in (2, 1):
        rows.save_to_disk(str(tmp_path), num_shards=shards)
    assert list(load_documents(str(tmp_path), "train")) == ["a", "b"]


def test_a_saved_data_set_without_rows_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": []}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"source 'saved': expected at least one row of text, but there is none"):
        load_documents(str(tmp_path / "saved"), "train")


def test_a_folder_with_a_state_of_its_own_is_no_saved_one(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("[]")
    (tmp_path / "train.txt").write_text("a")
    assert list(load_documents(str(tmp_path), "train")) == ["a"]
    (tmp_path / "train.txt").rename(tmp_path / "train.jsonl").write_text('{"text": "a"}')
    with pytest.raises(InputError, match=r"expected a folder without a state\.json of its own, .*; rename that"):
        load_documents(str(tmp_path), "train")
