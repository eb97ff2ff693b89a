"""The field's published data sets are read as the field reads them, others on the Hub at the revision given."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from reprune.errors import InputError
from reprune.planning import rows, sources
from reprune.planning.sources import load_documents
from tests.planning.test_sources import _at, _gzip_lines, _parquet


def test_c4_reads_one_shard_of_each_split_and_tests_what_the_field_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gzip_lines(tmp_path / "en" / "c4-train.00000-of-01024.json.gz", "first", "second")
    _gzip_lines(tmp_path / "en" / "c4-train.00001-of-01024.json.gz", "not read")
    tested = [f"tested {number}" for number in range(1102)]
    _gzip_lines(tmp_path / "en" / "c4-validation.00000-of-00008.json.gz", *tested)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  default: true\n  data_files:\n  - split: train\n"
        "    path: en/c4-train.*.json.gz\n  - split: validation\n    path: en/c4-validation.*.json.gz\n"
        "dataset_info:\n- config_name: en\n  features:\n  - name: text\n    dtype: string\n"
        "  - name: timestamp\n    dtype: string\n  - name: url\n    dtype: string\n  splits:\n"
        "  - name: train\n    num_bytes: 9\n    num_examples: 364868892\n---\n"
    )
    monkeypatch.setitem(sources.KNOWN, "c4", _at("c4", tmp_path))
    train, test = load_documents("c4", "train"), load_documents("c4", "test")
    assert (list(train), train.name, train.joiner, train.running, train.windows) == (
        ["first", "second"],
        "c4",
        "\n\n",
        False,
        None,
    )
    assert (list(test), test.name, test.joiner, test.running, test.windows) == (tested[:1100], "c4", " ", False, 256)
    _gzip_lines(tmp_path / "en" / "c4-validation.00000-of-00008.json.gz", "one alone")
    assert list(load_documents("c4", "test")) == ["one alone"]


@pytest.mark.parametrize("end", ["\n", ""])
def test_wikitext2_is_one_running_text_joined_as_published_whether_or_not_rows_keep_their_newline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        for split in ("train", "test"):
            rows: list[object] = ["", f" = {config} {split} = {end}", f" text {end}"]
            _parquet(tmp_path / config / f"{split}-00000-of-00001.parquet", text=rows)
    configs = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/train-*\n"
        f"  - split: test\n    path: {config}/test-*\n"
        for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setitem(sources.KNOWN, "wikitext2", _at("wikitext2", tmp_path))
    documents = load_documents("wikitext2", "test")
    assert list(documents) == ["", f" = wikitext-2-raw-v1 test = {end}", f" text {end}"]
    assert (documents.joiner, documents.running) == ("\n\n", True)
    by_id = load_documents(f"{tmp_path}:wikitext-103-raw-v1:train", "test")
    assert by_id[1] == f" = wikitext-103-raw-v1 train = {end}"
    assert by_id.name == f"{tmp_path.name}:wikitext-103-raw-v1:train"
    with pytest.raises(InputError, match="wikitext-103-raw-v1"):  # the message lists the configurations
        load_documents(str(tmp_path), "test")
    with pytest.raises(InputError, match=r"nothere.*train.*test"):
        load_documents(f"{tmp_path}:wikitext-2-raw-v1:nothere", "test")


def test_ptb_reads_the_parquet_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test", "validation"):
        _parquet(tmp_path / "penn_treebank" / split / "0000.parquet", sentence=[f"{split} one", "two"])
    monkeypatch.setitem(sources.KNOWN, "ptb", _at("ptb", tmp_path))
    train, test = load_documents("ptb", "train"), load_documents("ptb", "test")
    assert (list(train), train.joiner, train.running) == (["train one", "two"], " ", True)
    assert list(test) == ["test one", "two"]


def test_a_data_set_of_the_hub_is_read_at_the_revision_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load(path: str, config: str | None, **options: object) -> datasets.Dataset:
        asked.append((path, config, options["split"], options["revision"]))
        return datasets.Dataset.from_dict({"text": ["a"], "sentence": ["b"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(rows, "_commit", lambda dataset: asked[-1][-1])  # as if the revision were the commit
    places = [
        load_documents(name, "train").places
        for name in ("org/name@v1.0", "org/name@v1.1", "org/name", "org/name@v1.0:c:part:text", "ptb")
    ]
    assert asked == [
        ("org/name", None, "train", "v1.0"),
        ("org/name", None, "train", "v1.1"),
        ("org/name", None, "train", None),
        ("org/name", "c", "part", "v1.0"),
        ("ptb-text-only/ptb_text_only", None, "train", "refs/convert/parquet"),
    ]
    assert len({*places}) == 5
