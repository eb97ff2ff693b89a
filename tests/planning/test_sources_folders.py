"""A folder's texts of the main kind and the right split are read; the other ones are counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from reprune.errors import InputError
from reprune.planning.samples import draw_samples
from reprune.planning.shares import SourceSpec
from reprune.planning.sources import load_documents
from tests.files.test_readable import deny


def _write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"text of {name} " * 40
        path.write_text(json.dumps({"text": text}) if path.suffix in (".json", ".jsonl") else text)


@pytest.mark.parametrize(
    ("names", "read", "unread"),
    [
        (("a.jsonl", "b.jsonl", "c.txt", "more/d.txt.gz", "e.parquet"), 2, 3),  # not of the most frequent kind
        (("train.jsonl", "more.jsonl"), 1, 1),  # of no split
        (("a.jsonl", "README.md", "config.json", ".cache/b.txt", "run.py"), 1, 0),  # no texts
        (("train.txt", "test.txt"), 1, 0),  # of another split
        (("a.txt", "more/b.txt"), 2, 0),
    ],
)
def test_files_that_are_not_read_are_counted(tmp_path: Path, names: tuple[str, ...], read: int, unread: int) -> None:
    _write(tmp_path, *names)
    documents = load_documents(str(tmp_path), "train")
    assert (len(documents), documents.unread) == (read, unread)


def test_files_that_a_configuration_leaves_out_are_not_counted(tmp_path: Path) -> None:
    _write(tmp_path, "en/a.jsonl", "de/b.jsonl")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en/*\n- config_name: de\n  data_files: de/*\n---\n"
    )
    assert load_documents(f"{tmp_path}:en", "train").unread == 0
    with pytest.raises(InputError, match=r"expected split 'train' to be readable, but: Config name is missing"):
        load_documents(str(tmp_path), "train")


@pytest.mark.parametrize("elsewhere", ["../own.jsonl", "{}/own.jsonl"])
def test_a_folder_that_names_files_elsewhere_is_refused(elsewhere: str, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "nobody else\'s"}\n')
    (tmp_path / "given").mkdir()
    named = elsewhere.format(tmp_path)
    (tmp_path / "given" / "README.md").write_text(f"---\nconfigs: [{{config_name: c, data_files: {named}}}]\n---\n")
    with pytest.raises(InputError, match=r"source 'given': names the file .*own\.jsonl, outside the folder; refused$"):
        load_documents(str(tmp_path / "given"), "train")


def test_a_note_tells_of_them_and_they_can_be_given_by_their_paths(
    with_bos: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _write(tmp_path, "a.jsonl", "b.jsonl", "c.txt")
    drawn = draw_samples(with_bos, [SourceSpec(str(tmp_path))], [], 4, 8, 0)
    assert [source.unread_files for source in drawn.sources] == [1, 1]
    [note] = drawn.notes
    assert note.startswith(f"source {tmp_path.name!r}: of a folder, only files of one kind are read")
    assert "1 more that look like text are left out: give these by their own paths" in note
    draw_samples(with_bos, [SourceSpec(str(tmp_path)), SourceSpec(str(tmp_path / "c.txt"))], [], 4, 8, 0)


def test_a_folder_of_other_files_is_refused_by_what_could_be_in_it(tmp_path: Path) -> None:
    _write(tmp_path, "notes.md", "run.py")
    with pytest.raises(InputError, match=r"expected files ending in \.txt, .*, \.parquet, but the folder has none$"):
        load_documents(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("b.jsonl", b'{"text": "two"}\n{"text": two}\n', r"line 2: expected one JSON object per line, but .*; correct"),
        (
            "b.jsonl.gz",
            gzip.compress(b'{"text": "two"}\n' * 99, mtime=0)[:-9],
            "expected a file that can be read, but: .* ended",
        ),
        ("b.parquet", b"PAR1 and no end", "expected Parquet, but: .*; check the file$"),
    ],
)
def test_the_damaged_file_of_a_folder_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    import datasets

    whole = tmp_path / "folder" / f"a.{name.partition('.')[2]}"
    whole.parent.mkdir()
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    rows.to_parquet(whole) if whole.suffix == ".parquet" else rows.to_json(whole, compression="infer")
    assert len(load_documents(str(whole.parent), "train")) == 2
    (whole.parent / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^source 'folder': file '{name}'[:,] {said}"):
        load_documents(str(whole.parent), "train")


@pytest.mark.parametrize("name", ["b.txt", "c.jsonl"])
def test_a_link_into_a_closed_folder_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "a.txt", name)
    deny(monkeypatch, "stat", tmp_path / name)
    said = rf"source {tmp_path.name!r}, file {name!r}: cannot be read \(Permission denied\); check its permissions\.$"
    with pytest.raises(InputError, match=said):
        load_documents(str(tmp_path), "train")
