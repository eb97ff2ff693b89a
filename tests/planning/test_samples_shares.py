"""Samples of several sources, or of one in several roles, use no text twice, and what was used is recorded."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from reprune.errors import InputError
from reprune.planning.documents import Documents, text_sha256
from reprune.planning.samples import draw_samples
from reprune.planning.sources import DataSet, SourceSpec
from tests.planning.test_samples import B, _Given, _sources, _texts


@pytest.mark.parametrize("running", [True, False])
def test_one_source_named_several_times_is_never_used_twice(with_bos: PreTrainedTokenizerBase, running: bool) -> None:
    with _sources(a=_Given(_texts(*[20] * 40), running=running)):
        specs = [SourceSpec("a", 10), SourceSpec("a", 10)]
        drawn = draw_samples(with_bos, specs, [SourceSpec("a", 10)], 1, 24, 0)
    rows = torch.cat([drawn.calibration, drawn.heldout])
    assert rows.shape == (30, 24)
    assert len(torch.unique(rows, dim=0)) == 30
    assert [(r.count, r.role) for r in drawn.sources] == [
        (10, "calibration"),
        (10, "calibration"),
        (10, "heldout"),
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rows.jsonl", "rows.jsonl:text"),
        ("rows", "rows:default"),
        ("rows:::text", "rows::train"),
        ("texts", "texts:default:train:text"),
        ("known", "rows"),
    ],
)
def test_one_text_of_two_names_is_refused(
    with_bos: PreTrainedTokenizerBase,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one: str,
    other: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "rows/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(*({"text": text, "body": "b" * 99} for text in _texts(*[30] * 20)), name=name)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(_texts(900)[0])
    with _sources(known=DataSet("known", str(tmp_path / "rows"), column="text", running=True)):
        with pytest.raises(InputError, match=rf"^source '{other}': expected one name .* '{one}' is the same text"):
            draw_samples(with_bos, [SourceSpec(one)], [SourceSpec(other)], 4, 12, 0)
        draw_samples(with_bos, [SourceSpec(one)], [SourceSpec(one)], 4, 12, 0)
    draw_samples(with_bos, [SourceSpec("rows.jsonl:body")], [SourceSpec("rows.jsonl:text")], 4, 12, 0)


@pytest.mark.parametrize("rows", ["rows.jsonl", "rows.txt"])
def test_one_text_in_two_files_is_refused(with_bos: PreTrainedTokenizerBase, tmp_path: Path, rows: str) -> None:
    folder, file = tmp_path / "folder", tmp_path / "folder" / rows
    folder.mkdir()
    texts = _texts(*[300] * 150)
    as_rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    file.write_text(as_rows if rows.endswith(".jsonl") else texts[0])
    (folder / f"more{file.suffix}").write_bytes(file.read_bytes() + file.read_bytes())
    (packed := tmp_path / f"{rows}.gz").write_bytes(gzip.compress(file.read_bytes()))
    shutil.copy(file, copied := tmp_path / f"copied{file.suffix}")
    (linked := tmp_path / f"linked{file.suffix}").hardlink_to(file)
    (pointed := tmp_path / "pointed").symlink_to(folder)
    for one, other in permutations([file, packed, copied, linked], 2):
        with pytest.raises(InputError, match=r"expected one name for one text, .* is the same text; use that name"):
            draw_samples(with_bos, [SourceSpec(str(one))], [SourceSpec(str(other))], 4, 12, 0)
    for place in (folder, pointed):
        with pytest.raises(InputError, match=rf"'{file}': expected one name for one text, .* '{place}' has text of it"):
            draw_samples(with_bos, [SourceSpec(str(place))], [SourceSpec(str(file))], 4, 12, 0)


def test_texts_that_begin_alike_are_two(with_bos: PreTrainedTokenizerBase, write_jsonl: Callable[..., Path]) -> None:
    first, *texts = _texts(*[30] * 39)
    one = write_jsonl(*({"text": text} for text in (first, *texts[:19])), name="one.jsonl")
    other = write_jsonl(*({"text": text} for text in (first, *texts[19:])), name="other.jsonl")
    drawn = draw_samples(with_bos, [SourceSpec(str(one))], [SourceSpec(str(other))], 4, 12, 0)
    assert [(record.name, record.documents) for record in drawn.sources] == [("one.jsonl", 20), ("other.jsonl", 20)]


def test_a_commit_of_the_hub_is_on_record_and_is_one_text_by_all_names(
    with_bos: PreTrainedTokenizerBase, cache_rows: Callable[..., None]
) -> None:
    cache_rows(commit := "c" * 40, *_texts(*[30] * 20))
    drawn = draw_samples(with_bos, [SourceSpec("org/name")], [SourceSpec("manual")], 4, 12, 0)
    assert [record.commit for record in drawn.sources] == [commit, None]
    with pytest.raises(
        InputError, match=rf"^source 'org/name@{commit}': expected one name .* 'org/name' is the same text"
    ):
        draw_samples(with_bos, [SourceSpec("org/name")], [SourceSpec(f"org/name@{commit}")], 4, 12, 0)


def test_records_and_hash_tell_what_was_used(with_bos: PreTrainedTokenizerBase) -> None:
    texts = _texts(30, 30)
    with _sources(a=_Given(texts), b=_Given(("one text " * 99,))):
        drawn = draw_samples(with_bos, [SourceSpec("a", 1), B], [], 3, 8, 5)
    assert [(r.name, r.count, r.documents, r.role) for r in drawn.sources] == [
        ("given", 1, 2, "calibration"),
        ("given", 3, 1, "calibration"),
        ("given", 1, 2, "heldout"),
        ("given", 1, 1, "heldout"),
    ]
    used = {text_sha256(Documents("", (text,))) for text in texts}
    assert {drawn.sources[0].sha256, drawn.sources[2].sha256} == used
    digest = hashlib.sha256()
    for tensor in (drawn.calibration, drawn.heldout):
        for number in [*tensor.shape, *tensor.flatten().tolist()]:
            digest.update(int(number).to_bytes(8, "little", signed=True))
    assert drawn.sha256 == digest.hexdigest()
