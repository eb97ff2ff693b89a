"""What is wrong with a source's text is said in one message."""

from __future__ import annotations

import gzip
import json
import pwd
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import datasets
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.parquet  # type: ignore[import-untyped]  # it ships no types
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from reprune.errors import InputError
from reprune.planning.sources import find_source, load_documents, parse_source
from tests.files.test_readable import deny

OLD, NEW = "a" * 40, "b" * 40


@pytest.mark.parametrize("text", ["", "  ", "=5", "c4=0", "c4=-1"])
def test_an_empty_name_or_a_count_below_one_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected .* but"):
        parse_source(text)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reprune.planning.textfiles._LARGE", 100_000)
    path = tmp_path / "packed.txt.gz"
    for text in ("a" * 100_000, Random(0).randbytes(100_000).hex()):
        path.write_bytes(gzip.compress(text.encode()))
        assert list(load_documents(str(path), "train")) == [text]
    path.write_bytes(gzip.compress(b"a" * 100_001))
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        list(load_documents(str(path), "train"))


def test_rows_are_held_line_by_line_and_no_line_is_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reprune.planning.textfiles._LARGE", 100_000)
    path = tmp_path / "packed.jsonl.gz"
    row = b'{"text": "%s"}'
    lines = [row % (b"a" * 50_000)] * 5
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    assert len(load_documents(str(path), "train")) == 5
    path.write_bytes(gzip.compress(b"\n".join([*lines, row % (b"a" * 100_001), row % b"b"])))
    with pytest.raises(InputError, match=r"it unpacks, in line 6, to more than 200 times its size"):
        load_documents(str(path), "train")
    path.write_bytes(gzip.compress(b"[" + b",\n".join(lines) + b"]"))  # an array is held as a whole
    with pytest.raises(InputError, match="it unpacks to more than 200 times its size"):
        load_documents(str(path), "train")


@pytest.mark.parametrize("asked", [OLD, "main"])
def test_another_commit_than_that_asked_for_is_never_read(cache_rows: Callable[..., None], asked: str) -> None:
    cache_rows(OLD, "old")
    cache_rows(NEW, "new")
    latest, same = load_documents("org/name", "train"), load_documents(f"org/name@{NEW}", "train")
    assert (list(latest), latest.commit) == (list(same), same.commit) == (["new"], NEW)
    with pytest.raises(InputError, match=rf"^source 'org/name@{asked}': .* is commit {NEW}; .* name org/name@{NEW}$"):
        load_documents(f"org/name@{asked}", "train")


def test_a_revision_of_no_commit_that_is_known_is_refused(cache_rows: Callable[..., None]) -> None:
    cache_rows("by-an-old-release", "a")
    assert load_documents("org/name", "train").commit is None
    with pytest.raises(InputError, match=r"names no commit; check the network and HF_HUB_OFFLINE$"):
        load_documents("org/name@main", "train")


def test_a_branch_is_read_where_the_hub_says_that_it_is_that_commit(
    cache_rows: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_rows(NEW, "new")
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=NEW))
    assert list(load_documents("org/name@main", "train")) == ["new"]
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=OLD))
    with pytest.raises(InputError, match="expected revision 'main'"):
        load_documents("org/name@main", "train")


@pytest.mark.parametrize("name", ["c4", "org/name"])
def test_a_hub_data_set_without_a_home_folder_says_where_it_could_go(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as for a nameless user in a container
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Path("~").expanduser())
    with pytest.raises(InputError, match=r"but there is no home folder to download it to; set HF_HOME to a folder$"):
        load_documents(name, "train")


@pytest.mark.parametrize(("name", "revision"), [("org/name", ""), ("org/name@main", " at revision 'main'")])
def test_a_data_set_that_the_hub_does_not_have_may_be_private(
    name: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    said = f"but the Hub has no 'org/name'{revision}, or it is private or gated; check the id, or log in with `hf auth"
    with pytest.raises(InputError, match=said):
        load_documents(name, "train")


@pytest.mark.parametrize("name", ["c4", "ptb", "wikitext2", "no-such-org/no-such-data"])
def test_a_hub_out_of_reach_is_one_clear_message(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"the Hub cannot be reached; .*`manual`"):
        load_documents(name, "train")
    assert capfd.readouterr() == ("", "")


def test_what_the_hub_answers_is_said_though_the_library_only_misses_files(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = HfHubHTTPError.__new__(HfHubHTTPError)
    answered.response = SimpleNamespace(status_code=429)  # type: ignore[assignment]

    def load(*_: object, **__: object) -> None:
        try:
            raise answered
        except HfHubHTTPError:
            raise FileNotFoundError("Couldn't find any data file at /here/org/name.") from None

    monkeypatch.setattr(datasets, "load_dataset", load)
    said = "expected to read 'org/name' from the Hugging Face Hub, but .* accepts no more requests for now .429.; wait"
    with pytest.raises(InputError, match=said):
        load_documents("org/name", "train")


def test_a_hub_out_of_reach_is_said_though_the_library_only_misses_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        try:
            raise ConnectionError("nobody answers")
        except ConnectionError:
            raise FileNotFoundError("Couldn't find any data file at /here/org/name.") from None

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"the Hub cannot be reached; .*`manual`"):
        load_documents("org/name", "train")


@pytest.mark.parametrize("name", ["rows", "rows/a.jsonl"])
def test_a_damaged_file_on_this_machine_is_no_page_of_a_proxy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    Path("rows/a.jsonl").write_text('{"text": "a b"}\n')
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: json.loads("<html>"))
    with pytest.raises(InputError, match="Expecting value: line 1 column 1"):
        load_documents(str(tmp_path / name), "train")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ('{"default": broken', "expected split 'train' .* Expecting value"),
        ("<html>", "a server that is not the Hub answers, such as"),
    ],
)
def test_a_damaged_file_of_a_hubs_data_set_is_no_page_of_a_proxy(
    told: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: json.loads(told))  # as with dataset_infos.json
    with pytest.raises(InputError, match=said):
        load_documents("org/name", "train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikitext", r"did you mean 'wikitext2'\?.*org/name"),
        ("pbt", r"did you mean 'ptb'\?"),
        ("c4=1e3", r"did you mean 'c4'\? COUNT after the = must be a whole number"),
        ("xyzzy", r"no such text or file; a source is c4"),
        ("c4:en", r"expected 'c4' alone"),
        ("nowhere/rows.jsonl", r"expected a file or directory, but there is none"),
        ("./nowhere", r"expected a file or directory, but there is none"),
        ("rows.parquet:body", r"expected a file or directory, but there is none"),
        ("org/name:a:b:c:d", r"got 5 parts"),
        ("org/name@", r"a source is c4"),
        ("org/name::train[:50]", r"expected whole splits, but got the slice '\[:50\]'; leave it out"),
        ("org/name::train[10%:]+test:text", r"expected whole splits, but got the slice '\[10%:\]'"),
        ("~nobody-has-this-name/rows.txt", r"expected a file or directory, but there is none"),
        (f"{'long' * 99}.txt", r"expected a file or directory, but there is none"),
        (r"C:\texts\rows.txt", r"expected a file or directory, but there is none"),
        ("C:/texts/rows.txt=8", r"expected a file or directory, but there is none"),
        (
            "First line.\n" + 9000 * "o",
            r"^source 'First line.\\no{68}': expected .* but this is a text; write",
        ),
        (9000 * "word ", r"^source '(word ){16}': expected the name of a source, but this is a text; write"),
        ("/dev/null", r"expected a regular file, .* but it is a pipe or a device; write the text to a file"),
    ],
)
def test_a_name_that_is_nothing_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_source(name)


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("a.csv", b"text\na\n", r"expected a file ending in .* got '\.csv'"),
        ("a.txt", b"", r"empty"),
        ("a.txt", b" \n", r"empty"),
        ("a.txt", b"one\ntw\xe9 o\n", r"line 2: expected UTF-8, but byte 0xe9"),
        ("a.txt", "one\ntwo\n".encode("utf-16-be"), r"line 1: expected text in UTF-8, but it has a zero byte"),
        ("a.txt", "one\ntwo\n".encode("utf-16-le"), r"line 1: expected text in UTF-8, but it has a zero byte"),
        ("a.txt.gz", gzip.compress(b"one\nt\0wo", mtime=0), r"line 2: expected text in UTF-8, but it has a zero byte"),
        ("a.txt.gz", b"no gzip", r"expected a file that can be read"),
        ("a.txt.gz", gzip.compress(b"a" * 99, mtime=0)[:-9], r"expected a file that can be read"),
        ("a.jsonl", b"", r"empty"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"line 2: expected UTF-8, but byte 0xe9"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": b}\n', r"line 3: expected one JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b', r"line 2: expected one JSON object"),
        ("a.jsonl", b'{"text": "a"}\n"b"\n', r"line 2: expected a JSON object .* got str"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b \\ud83d"}\n', r"line 2: expected text in 'text', .* surrogate pair"),
        ("a.jsonl", b'{"body": "a"}\n{"body": "b \\ud83d"}\n', r"line 2: expected text in 'body', .* surrogate pair"),
        ("a.json", b'[{"text": "a"},\n {"text": b}]', r"expected a JSON array .* line 2"),
        ("a.json", b'{"data": [{"text": "a"}]}', r"columns are: data"),
        ("a.json.gz", b"no gzip", r"expected a file that can be read"),
        ("a.parquet", b"no parquet", r"Parquet"),
        ("a.txt:text", b"a", r"expected no column"),
        ("a.jsonl:text:more", b'{"text": "a"}', r"expected FILE\[:COLUMN\], but got 'text:more' after it"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str, data: bytes, message: str
) -> None:
    (tmp_path / file.partition(":")[0]).write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        load_documents(str(tmp_path / file), "train")
    assert str(raised.value).startswith(f"source '{file.partition(':')[0]}'")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [None, b"x"])
def test_a_directory_without_data_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(InputError, match=rf"source '{tmp_path.name}'.*\.parquet, but the folder has none$"):
        load_documents(str(tmp_path), "train")


def test_texts_of_a_parquet_file_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    """Its writer may have said that bytes are text, and nobody checks."""
    data = pa.array([b"one", b"caf\xe9"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
    pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    documents = load_documents(str(tmp_path / "a.parquet"), "train")
    for read in (list, lambda found: found[1]):
        with pytest.raises(InputError, match=r"^source 'a\.parquet': .* column 'text', but byte 0xe9 "):
            read(documents)


@pytest.mark.parametrize("column", ["", ":body"])
def test_a_file_in_a_closed_folder_is_not_just_called_missing(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jsonl"
    file.touch()
    deny(monkeypatch, "stat", file)
    said = rf"a\.jsonl{column}': expected .* none that can be looked at; check the path and its permissions$"
    with pytest.raises(InputError, match=said):
        load_documents(f"{file}{column}", "train")


@pytest.mark.parametrize(("name", "identifier"), [("wikitext2", "Salesforce/wikitext"), ("org/name@main", "org/name")])
def test_a_folder_here_is_not_read_in_the_place_of_a_data_set_of_the_hub(
    name: str, identifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(identifier).mkdir(parents=True)
    (Path(identifier) / "test.txt").write_text("not what was asked for")
    said = f"expected {identifier!r} of the Hub, but `datasets` would read the folder of that name, which is here; "
    with pytest.raises(InputError, match=said):
        load_documents(name, "test")
