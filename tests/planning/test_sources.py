"""A source names texts, on this machine or the Hub, and gives them unchanged."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.parquet  # type: ignore[import-untyped]  # it ships no types
import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from hypothesis import given
from hypothesis import strategies as st

from reprune.errors import InputError
from reprune.planning import sources
from reprune.planning.documents import Documents, text_sha256
from reprune.planning.sources import DataSet, Manual, SourceSpec, Split, find_source, load_documents, parse_source

Write = Callable[..., Path]


def _parquet(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def _gzip_lines(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "timestamp": "2019", "url": "u"}) + "\n" for text in texts)
    return path


def _at(name: str, folder: Path) -> DataSet:
    known = sources.KNOWN[name]
    assert isinstance(known, DataSet)
    return replace(known, id=str(folder))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("c4", SourceSpec("c4", None)),
        ("c4=256", SourceSpec("c4", 256)),
        ("a=b.txt", SourceSpec("a=b.txt", None)),
        ("a=b.txt=7", SourceSpec("a=b.txt", 7)),
        ("run=3/text.jsonl:body=12", SourceSpec("run=3/text.jsonl:body", 12)),
        ("org/name:config:train:text=+5", SourceSpec("org/name:config:train:text", 5)),
        ("c4=1e3", SourceSpec("c4=1e3", None)),
        (f"c4={'9' * 18}", SourceSpec("c4", 10**18 - 1)),
        (f"c4={'9' * 5000}", SourceSpec(f"c4={'9' * 5000}", None)),
    ],
)
def test_a_whole_number_after_the_last_equals_sign_is_the_count(text: str, expected: SourceSpec) -> None:
    assert parse_source(text) == expected


def test_a_number_that_ends_the_name_of_a_path_is_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("year=2024", "both=1", "both", "c4=7", "a:b=3"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for text in ("year=2024", f"{tmp_path}/year=2024", "a:b=3"):
        assert parse_source(text) == SourceSpec(text, None)
    assert parse_source("year=2024=4") == SourceSpec("year=2024", 4)
    assert parse_source("year=2024:config=4") == SourceSpec("year=2024:config", 4)
    for text, name, count in (("both=1", "both", 1), ("c4=7", "c4", 7), ("year=2023", "year", 2023)):
        assert parse_source(text) == SourceSpec(name, count), "what the text has meant"


@given(name=st.text(min_size=1).filter(str.strip), count=st.integers(1, 10**9))
def test_name_and_count_come_back_for_any_name(name: str, count: int) -> None:
    assert parse_source(f"{name}={count}") == SourceSpec(name, count)


def test_the_manual_is_split_into_even_and_odd_topics() -> None:
    train, test = load_documents("manual", "train"), load_documents("manual", "test")
    keys = sorted(topics)
    assert list(train) == [topics[key] for key in keys[::2]]
    odd = [topics[key] for key in keys[1::2]]
    assert sum(map(len, odd)) > sum(map(len, test)) > 0.6 * sum(map(len, odd))
    assert all(paragraph in "\n\n".join(odd) for text in test for paragraph in text.split("\n\n"))
    assert (train.name, train.joiner, train.running) == ("manual", "\n\n", False)


def test_no_passage_of_the_manual_is_in_both_halves() -> None:
    """Topics repeat each other, so splitting them is not enough; the twin looks for runs of 24 words."""

    def passages(split: Split) -> set[tuple[str, ...]]:
        words = "\n\n".join(load_documents("manual", split)).split()
        return {tuple(words[start : start + 24]) for start in range(len(words) - 23)}

    train, test = passages("train"), passages("test")
    assert len(train & test) < 0.005 * len(test)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".TXT"])
def test_a_text_file_is_one_document_with_its_lines_as_they_stand(tmp_path: Path, suffix: str) -> None:
    text = "one\r\n\n  two é\n"
    path = tmp_path / f"my text{suffix}"
    data = b"\xef\xbb\xbf" + text.encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    documents = load_documents(str(path), "train")
    assert list(documents) == [text]
    assert documents.name == path.name
    assert documents.running


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".json.gz"])
def test_each_line_of_json_is_a_document(tmp_path: Path, suffix: str) -> None:
    data = "".join(json.dumps({"id": i, "text": f"text {i}\né"}) + "\n" for i in range(5)).encode()
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    documents = load_documents(str(path), "test")
    assert (len(documents), documents.name, documents.joiner) == (5, path.name, "\n\n")
    assert documents[3] == "text 3\né"
    assert list(documents) == [f"text {i}\né" for i in range(5)]
    assert documents.token_ids(0) is None


def test_a_json_array_is_read_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    assert list(load_documents(str(path), "train")) == ["a", "b"]


def test_the_column_is_the_named_one_or_text_or_the_only_strings(tmp_path: Path) -> None:
    both = _parquet(tmp_path / "both.parquet", text=["t"], body=["b"], n=[1])
    only = _parquet(tmp_path / "only.parquet", body=["b"], n=[1])
    numbered = _parquet(tmp_path / "numbered.parquet", text=["t"], ids=[[1, 2]])
    assert load_documents(str(numbered), "train").token_ids(0) is None  # only JSON files may have them
    assert list(load_documents(str(both), "train")) == ["t"]
    assert list(load_documents(f"{both}:body", "train")) == ["b"]
    assert list(load_documents(str(only), "train")) == ["b"]
    assert load_documents(f"{both}:body", "train").name == "both.parquet"


def test_a_missing_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "rows.parquet", title=["t"], body=["b"], n=[1])
    for name in (str(path), f"{path}:text", f"{path}:n"):
        with pytest.raises(InputError, match=r"title \(string\), body \(string\), n \(int64\)"):
            load_documents(name, "train")


@pytest.mark.parametrize("column", ["input_ids", "tokens"])
def test_of_tokens_without_their_text_it_is_said_to_decode_them(write_jsonl: Write, column: str) -> None:
    with pytest.raises(InputError, match=f"; if '{column}' has tokens, decode them into a column 'text' first$"):
        load_documents(str(write_jsonl({"length": 2, column: [3, 4], "weights": [0.5, 1.0]})), "train")


def test_what_is_named_as_tokens_are_is_taken_for_them_before_other_lists(write_jsonl: Write) -> None:
    with pytest.raises(InputError, match="; if 'input_ids' has tokens, decode them"):
        load_documents(str(write_jsonl({"attention_mask": [1, 1], "input_ids": [3, 4], "labels": [3, 4]})), "train")


@pytest.mark.parametrize("within", [[{"role": "user", "content": "a"}], ["a"], {"a": "b"}])
def test_a_label_beside_chats_is_not_taken_for_the_text(write_jsonl: Write, within: object) -> None:
    path = write_jsonl({"messages": within, "label": "chat"})
    with pytest.raises(InputError, match=r"label \(string\).* name the column .* if 'messages' has chats, render them"):
        load_documents(str(path), "train")
    with pytest.raises(InputError, match=r"if 'messages' has chats"):
        load_documents(str(path.parent), "train")
    assert list(load_documents(f"{path}:label", "train")) == ["chat"]
    beside = write_jsonl({"messages": within, "label": "chat", "text": "a"})
    assert list(load_documents(str(beside), "train")) == ["a"]


@pytest.mark.parametrize("several", [False, True])
def test_a_caption_beside_images_is_the_text(tmp_path: Path, several: bool) -> None:
    """The images' column contains strings too: the names of files."""
    image = {"bytes": b"x", "path": "a.png"}
    path = _parquet(tmp_path / "rows.parquet", image=[[image] if several else image], caption=["a"])
    assert list(load_documents(str(path), "train")) == ["a"]
    path = _parquet(tmp_path / "rows.parquet", image=[{**image, "title": "b"}], caption=["a"])
    with pytest.raises(InputError, match=r"name the column"):
        load_documents(str(path), "train")


@pytest.mark.parametrize("column", ["token_ids", "ids"])
def test_rows_may_hold_the_tokens_they_were_generated_as(write_jsonl: Write, column: str) -> None:
    path = write_jsonl({"text": "a", column: [3, 1, 2]}, {"text": "b", column: None}, {"text": "c"})
    documents = load_documents(str(path), "train")
    assert [documents.token_ids(i) for i in range(3)] == [[3, 1, 2], None, None]
    assert list(documents) == ["a", "b", "c"]


def test_ids_that_are_not_lists_of_whole_numbers_are_no_tokens(write_jsonl: Write) -> None:
    assert load_documents(str(write_jsonl({"text": "a", "ids": 7})), "train").token_ids(0) is None
    both = write_jsonl({"text": "a", "ids": [1], "token_ids": [2]}, name="both.jsonl")
    assert load_documents(str(both), "train").token_ids(0) == [2]
    assert load_documents(str(write_jsonl({"text": "a", "ids": ["x"]})), "train").token_ids(0) is None


def test_a_row_without_text_is_an_empty_document(write_jsonl: Write) -> None:
    assert list(load_documents(str(write_jsonl("a", {"text": None}, "b")), "train")) == ["a", "", "b"]


def test_lines_without_a_row_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a"}\n\n{"text": "b"}\n\n')
    assert list(load_documents(str(path), "train")) == ["a", "b"]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"meta": None}, {"meta": "b"}),
        ({}, {"meta": "b"}),
        ({"score": 1}, {"score": 0.5}),
        ({"meta": None, "token_ids": [1, 2]}, {"meta": "b", "token_ids": [3]}),
        ({"token_ids": None}, {"token_ids": [3]}),
        ({"url": "u"}, {"token_ids": [3], "prefix": "l"}),  # texts of the model's own behind others
    ],
)
def test_columns_besides_the_text_may_change_within_a_large_file(
    first: dict[str, Any], later: dict[str, Any], write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` infers the types of all columns from the first 10 MB."""
    (temporary := tmp_path / "a[1]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    long = "word " * 2**18
    rows = [*[{"text": long, **first}] * 9, {"text": "last", **later}]
    path, other = write_jsonl(*rows), write_jsonl({"text": {"body": "no text"}}, *rows, name="other.jsonl")
    documents = load_documents(str(path), "train")
    assert list(documents) == [*[long] * 9, "last"]
    assert documents.token_ids(9) == later.get("token_ids")
    assert documents.places == {(path, "text")}, "so that it is known under all its names"
    for wrong in (f"{path}:body", str(other)):
        with pytest.raises(InputError, match="expected a file of JSON rows, but: "):
            load_documents(wrong, "train")


def test_a_changed_file_is_read_anew_and_leaves_nothing_behind(
    write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _own_cache: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    first = load_documents(str(write_jsonl("before")), "train")
    second = load_documents(str(write_jsonl("after!")), "train")
    assert (list(first), list(second)) == (["before"], ["after!"])
    del first, second
    gc.collect()
    with pytest.raises(InputError, match="at least one row of text"):
        load_documents(str(write_jsonl(" ")), "train")
    assert not list(scratch.iterdir())
    assert not list(_own_cache.iterdir())


def test_a_directory_is_read_as_the_hub_would_serve_it(tmp_path: Path) -> None:
    _parquet(tmp_path / "train.parquet", body=["a"], title=["x"])
    _parquet(tmp_path / "test.parquet", body=["b"], title=["y"])
    assert list(load_documents(f"{tmp_path}:::body", "train")) == ["a"]
    assert list(load_documents(f"{tmp_path}::test:title", "train")) == ["y"]


def test_each_text_file_of_a_directory_is_a_document_with_its_lines_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    texts = {"a.txt": "one\r\n\n  two é\n", "b.txt": "", "c.txt.gz": "three\nfour\n", "more/d.txt": "five\n"}
    for name, text in texts.items():
        data = b"\xef\xbb\xbf" + text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for name in (f"{tmp_path}", f"{tmp_path}:default:train:text"):
        documents = load_documents(name, "train")
        assert sorted(documents) == sorted(texts.values())
        assert [documents[index] for index in range(4)] == list(documents)
        assert (documents.joiner, documents.running) == ("\n\n", False)
    assert documents.name == f"{tmp_path.name}:default:train:text"
    with pytest.raises(InputError, match=r"expected no column, since a \.txt has none, but got 'body'"):
        load_documents(f"{tmp_path}:::body", "train")
    with pytest.raises(InputError, match=r"split 'test'"):
        load_documents(str(tmp_path), "test")
    (tmp_path / "test.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=rf"source '{tmp_path.name}', file 'test.txt', line 1: expected UTF-8"):
        list(load_documents(str(tmp_path), "test"))


@pytest.mark.parametrize("name", ["web[1].jsonl", "web*.jsonl", "web?.parquet", "run[1]/web.jsonl.gz", "[.json"])
def test_a_file_whose_path_looks_like_a_pattern_is_that_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for one, text in ((tmp_path / f"web1{path.suffix}", "another"), (path, "meant")):
        one.parent.mkdir(exist_ok=True)
        if path.suffix == ".parquet":
            _parquet(one, text=[text])
        elif path.suffix == ".gz":
            _gzip_lines(one, text)
        else:
            one.write_text(json.dumps({"text": text}))
    assert list(load_documents(str(path), "train")) == ["meant"]


def test_a_folder_whose_path_looks_like_a_pattern_is_refused(tmp_path: Path) -> None:
    _parquet(tmp_path / "run[1]" / "more" / "train.parquet", text=["meant"])
    _parquet(tmp_path / "run1" / "more" / "train.parquet", text=["another"])
    with pytest.raises(InputError, match=r"source 'more': expected a folder .* but got 'run\[1\]' in it; rename that"):
        load_documents(str(tmp_path / "run[1]" / "more"), "train")


@pytest.mark.parametrize("split", ["all", "train+test", "train + test"])
def test_text_files_of_several_splits_are_documents_too(tmp_path: Path, split: str) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n\nof two lines\n")
    assert list(load_documents(f"{tmp_path}::{split}", "train")) == [
        f"{one}\n\nof two lines\n" for one in ("train", "test")
    ]
    with pytest.raises(InputError, match=r"split 'train\+more'"):
        load_documents(f"{tmp_path}::train+more", "train")


def test_names_of_one_place_are_equal_sources(
    write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl("a")
    monkeypatch.chdir(tmp_path)
    assert find_source(str(path)) == find_source("rows.jsonl") == find_source("./rows.jsonl")
    assert find_source("rows.jsonl:text") != find_source("rows.jsonl:body")
    folder = find_source(str(tmp_path))
    assert isinstance(folder, DataSet)
    assert folder == find_source(".") == find_source(f"../{tmp_path.name}")
    assert folder.name == tmp_path.name
    assert find_source("manual") == Manual()


def test_a_hub_id_keeps_its_parts() -> None:
    source = find_source("org/name::validation")
    assert isinstance(source, DataSet)
    assert (source.id, source.config, source.split, source.column) == ("org/name", None, "validation", None)
    assert find_source("org/name:c:s:t") == DataSet("org/name:c:s:t", "org/name", "c", "s", "t")
    branch = find_source("org/name@refs/convert/parquet:c")
    assert isinstance(branch, DataSet)
    assert (branch.id, branch.revision, branch.config) == ("org/name", "refs/convert/parquet", "c")


def test_files_without_any_row_are_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text("[]")
    for name, form in (("a.parquet", "Parquet"), ("a.json", "JSON")):
        with pytest.raises(InputError, match=rf"source '{name}': expected a file of {form} rows"):
            load_documents(str(tmp_path / name), "train")


def test_rows_that_are_all_blank_are_refused(write_jsonl: Write, tmp_path: Path) -> None:
    message = r"expected at least one row of text, but there is none"
    with pytest.raises(InputError, match=rf"source 'rows.jsonl': {message}"):
        load_documents(str(write_jsonl("", " \n", {"text": None})), "train")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("\n")
    with pytest.raises(InputError, match=rf"source 'texts': {message}"):
        load_documents(str(tmp_path / "texts"), "train")
    assert list(load_documents(str(write_jsonl(*[""] * 2000, "a")), "train")) == [*[""] * 2000, "a"]


def test_bars_and_logs_are_quiet_only_while_reading(
    write_jsonl: Write, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.enable_progress_bars()
    loggers = [logging.getLogger("datasets"), logging.getLogger("huggingface_hub")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
    load_documents(str(write_jsonl("a")), "train")
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()
    assert not are_progress_bars_disabled()
    assert [logger.level for logger in loggers] == [logging.INFO, logging.INFO]


def test_nobody_is_told_that_a_file_of_this_machine_is_read(
    write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    session = SimpleNamespace(head=lambda url, **_: asked.append(url))
    monkeypatch.setattr("datasets.load.get_session", lambda: session)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_UPDATE_DOWNLOAD_COUNTS", raising=False)
    counted = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_bytes(write_jsonl("a").read_bytes())
    for path in (write_jsonl("a"), tmp_path / "texts"):
        load_documents(str(path), "train")
    assert asked == []
    assert counted == datasets.config.HF_UPDATE_DOWNLOAD_COUNTS


@given(texts=st.lists(st.text(), min_size=1))
def test_the_hash_is_that_of_the_joined_text(texts: list[str]) -> None:
    whole = Documents("whole", ("--".join(texts),))
    assert text_sha256(Documents("parts", tuple(texts), joiner="--")) == text_sha256(whole)
    assert text_sha256(Documents("parts", tuple(texts)), [0]) == text_sha256(Documents("one", (texts[0],)))
