"""A file of texts continues from its last whole round after a crash at any point, and overwrites no other file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.errors import InputError
from reprune.planning.generation.corpus import Corpus
from reprune.planning.generation.filters import Filter, Judgement, Text
from reprune.planning.generation.rounds import Round

MADE_BY = {"model": {"fingerprint": "ab"}, "settings": {"seed": 5}}


def line(number: int, name: str) -> dict[str, Any]:
    return {"text": f"ein Text, né {name}", "token_ids": [1, 2], "mean_log_probability": -1.5, "round": number}


def round_(number: int, kept: int, rejected: int) -> Round:
    return Round(
        [line(number, f"k{number}.{index}") for index in range(kept)],
        [*(line(number, f"r{number}.{index}") for index in range(rejected)), {"prefix": "a", "round": number}],
        Counter({"kept": kept, "rejected code": rejected}),
    )


ROUNDS = [round_(0, 2, 1), round_(1, 0, 3), round_(2, 3, 0)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole(path: Path) -> Corpus:
    path.parent.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(path)
    corpus.open(MADE_BY, 5)
    for one in ROUNDS:
        corpus.add(one)
    corpus.close({"made_by": MADE_BY, "texts": corpus.count, "counts": dict(corpus.counts)})
    return corpus


def test_a_file_has_the_rounds_in_order_and_a_manifest(tmp_path: Path) -> None:
    corpus = whole(tmp_path / "self.jsonl")
    assert set(files(tmp_path)) == {"self.jsonl", "self.rejected.jsonl", "self.manifest.json"}
    assert list(corpus.kept_texts()) == [one for found in ROUNDS for one in found.kept]
    rejected = [one for found in ROUNDS for one in found.rejected]
    assert list(corpus.rejected_texts()) == [one for one in rejected if "text" in one]
    assert [json.loads(line) for line in corpus.rejected.read_text(encoding="utf-8").splitlines()] == rejected
    assert (corpus.count, corpus.counts, corpus.next_round) == (5, {"kept": 5, "rejected code": 4}, 3)
    finished = Corpus(tmp_path / "self.jsonl").finished()
    assert finished is not None and finished["texts"] == 5
    assert "né" in (tmp_path / "self.jsonl").read_text(encoding="utf-8"), "texts are to be read"


@pytest.mark.parametrize("done", [0, 1, 2, 3])
@pytest.mark.parametrize("cut", ["nothing", "kept", "both", "ledger"])
def test_it_goes_on_after_a_crash_anywhere(done: int, cut: str, tmp_path: Path) -> None:
    whole(tmp_path / "a" / "self.jsonl")
    (tmp_path / "b").mkdir()
    corpus = Corpus(tmp_path / "b" / "self.jsonl")
    corpus.open(MADE_BY, 5)
    for one in ROUNDS[:done]:
        corpus.add(one)
    rubbish = {"nothing": [], "kept": [corpus.path], "both": [corpus.path, corpus.rejected], "ledger": [corpus._rounds]}
    for file in rubbish[cut]:  # what a killed process had written of the next round
        with file.open("a", encoding="utf-8") as stream:
            stream.write('{"kept": 3, "text": "cut sh')
    again = Corpus(corpus.path)
    assert again.finished() is None
    again.open(MADE_BY, 5)
    assert (again.count, again.counts, again.next_round) == (corpus.count, corpus.counts, done)
    for one in ROUNDS[again.next_round :]:
        again.add(one)
    again.close({"made_by": MADE_BY, "texts": again.count, "counts": dict(again.counts)})
    assert files(tmp_path / "b") == files(tmp_path / "a")


class _Endless:
    """Rounds of one to four texts each that pass, and of some that do not."""

    def round(self, number: int, wanted: int) -> Round:
        found = round_(number, min(1 + number % 4, wanted), number % 2)
        if (left_over := 1 + number % 4 - wanted) > 0:
            found.counts["left over"] = left_over
        return found


def _grown(path: Path, samples: int) -> None:
    corpus = Corpus(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    corpus.open(MADE_BY, samples)
    while corpus.count < samples:
        corpus.add(_Endless().round(corpus.next_round, samples - corpus.count))
    corpus.close({"made_by": MADE_BY, "texts": corpus.count, "counts": dict(sorted(corpus.counts.items()))})


@given(st.sets(st.integers(1, 30), min_size=1, max_size=6))
def test_a_file_grows_to_what_it_would_have_been_at_once(
    tmp_path_factory: pytest.TempPathFactory, goals: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    for goal in sorted(goals):
        _grown(folder / "grown" / "self.jsonl", goal)
        assert Corpus(folder / "grown" / "self.jsonl").texts() == goal
    _grown(folder / "whole" / "self.jsonl", max(goals))
    assert files(folder / "grown") == files(folder / "whole")


def test_a_file_with_more_texts_is_not_cut(tmp_path: Path) -> None:
    whole(tmp_path / "self.jsonl")
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"has 5 texts already; give --samples 5 or more"):
        Corpus(tmp_path / "self.jsonl").open(MADE_BY, 4)
    assert files(tmp_path) == before


def test_it_knows_how_many_texts_are_there_for_good(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "self.jsonl")
    assert corpus.texts() == 0
    corpus.open(MADE_BY, 5)
    assert corpus.texts() == 0
    corpus.add(ROUNDS[0])
    with corpus._rounds.open("a") as stream:
        stream.write('{"kept": 4, "te')
    assert Corpus(corpus.path).texts() == 2


def test_filters_learn_what_they_had_learned(tmp_path: Path) -> None:
    class Noting(Filter):
        name = "noting"

        def __init__(self) -> None:
            self.noted: list[tuple[str, bool]] = []

        def judge(self, text: Text) -> Judgement:
            return Judgement(0, None)

        def take_note(self, text: Text, kept: bool) -> None:
            self.noted.append((text.text, kept))

    corpus, noting = whole(tmp_path / "self.jsonl"), Noting()
    corpus.teach([noting])
    expected = []
    for found in ROUNDS:
        expected += [(one["text"], True) for one in found.kept]
        expected += [(one["text"], False) for one in found.rejected if "text" in one]
    assert noting.noted == expected


@pytest.mark.parametrize("name", ["self.jsonl", "self.rejected.jsonl"])
def test_a_file_that_is_there_is_not_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("years of work")
    with pytest.raises(InputError, match=f"{name} exists already; give another file"):
        Corpus(tmp_path / "self.jsonl").open(MADE_BY, 5)
    assert files(tmp_path) == {name: b"years of work"}


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "self.jsonl")
    corpus.open(MADE_BY, 5)
    corpus.add(ROUNDS[0])
    before = files(tmp_path)
    for other, said in (
        ({"settings": {}}, "seed 5, now None"),
        ({"settings": {"seed": 6, "filters": ["a", "b"]}}, r"seed 5, now 6; filters None, now \['a', 'b'\]"),
        ({"device": "cpu", "settings": {"seed": 6}}, "seed 5, now 6; device"),
    ):
        with pytest.raises(InputError, match=rf"begun with other settings \({said}\); give the same again"):
            Corpus(tmp_path / "self.jsonl").open({**MADE_BY, **other}, 5)
    assert files(tmp_path) == before


def test_a_model_is_the_same_by_its_fingerprint_and_by_its_name_where_it_has_none(tmp_path: Path) -> None:
    def begun(**model: str) -> None:
        Corpus(tmp_path / f"{'own' if 'fingerprint' in model else 'served'}.jsonl").open({**MADE_BY, "model": model}, 5)

    begun(name="owner/tiny", fingerprint="ab")
    begun(name="owner/tiny@main", commit="0123", fingerprint="ab")
    begun(name="owner/tiny", commit="0123")
    begun(name="owner/tiny", commit="4567")
    for other in ({"name": "owner/tiny", "fingerprint": "cd"}, {"name": "owner/other"}):
        with pytest.raises(InputError, match=r"begun with other settings \(model\)"):
            begun(**other)


def test_a_branch_that_has_moved_on_is_gone_on_with_by_the_commit(tmp_path: Path) -> None:
    def begun(**model: str) -> None:
        Corpus(tmp_path / "self.jsonl").open({**MADE_BY, "model": model}, 5)

    begun(name="owner/tiny@main", commit="0123", fingerprint="ab")
    with pytest.raises(InputError, match=r"\(model\); give the same, the model as owner/tiny@0123, again, or another"):
        begun(name="owner/tiny@main", commit="4567", fingerprint="cd")
    begun(name="owner/tiny@0123", commit="0123", fingerprint="ab")


def test_files_that_decide_tokens_are_compared(tmp_path: Path) -> None:
    def begun(**files: str) -> None:
        model = {"name": "owner/tiny", "commit": "0123", "fingerprint": "ab", "files": files}
        Corpus(tmp_path / "self.jsonl").open({**MADE_BY, "model": model}, 5)

    begun(**{"config.json": "01", "tokenizer.json": "23"})
    begun(**{"config.json": "45", "tokenizer.json": "23"})
    begun(**{"tokenizer.json": "23", "merges.txt": "89"})  # merges.txt is not read beside tokenizer.json
    message = (
        r"\(the model's tokenizer\.json; the model's tokenizer\.model\); give the same, the model as owner/tiny@0123, "
    )
    with pytest.raises(InputError, match=message):
        begun(**{"tokenizer.json": "67", "tokenizer.model": "89"})


def test_a_local_model_is_given_by_no_commit(tmp_path: Path) -> None:
    """It may be a link to a commit's folder."""
    for number, name in enumerate((str(tmp_path), "./gone")):
        corpus = Corpus(tmp_path / f"{number}.jsonl")
        corpus.open({**MADE_BY, "model": {"name": name, "commit": "0123", "fingerprint": "ab"}}, 5)
        with pytest.raises(InputError, match=r"\(model\); give the same again, or another"):
            corpus.open({**MADE_BY, "model": {"name": name, "commit": "4567", "fingerprint": "cd"}}, 5)


@pytest.mark.parametrize("damage", ["gone", "shorter", "not JSON", "no head", "no round", "no number"])
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "self.jsonl")
    corpus.open(MADE_BY, 5)
    corpus.add(ROUNDS[0])
    match damage:
        case "gone":
            corpus.path.unlink()
        case "shorter":
            corpus.path.write_bytes(corpus.path.read_bytes()[:-5])
        case "not JSON":
            corpus._rounds.write_text("{\n")
        case "no head":
            corpus._rounds.write_text(corpus._rounds.read_text().split("\n", 1)[1])
        case "no round":
            corpus._rounds.write_text(corpus._rounds.read_text().split("\n", 1)[0] + '\n["kept"]\n')
        case "no number":
            corpus._rounds.write_text(corpus._rounds.read_text().replace('"kept": 2', '"kept": "2"'))
    with pytest.raises(InputError, match=r"(shorter than it was|damaged); remove it and .*generate again"):
        Corpus(tmp_path / "self.jsonl").open(MADE_BY, 5)
    if damage not in ("gone", "shorter"):
        with pytest.raises(InputError, match=r"self\.rounds: damaged; remove it and self\.jsonl and"):
            Corpus(tmp_path / "self.jsonl").texts()


@pytest.mark.parametrize(
    "damage",
    [
        {"texts": "5"},
        {"made_by": []},
        {"made_by": {**MADE_BY, "model": {**MADE_BY["model"], "files": ["tokenizer.json"]}}},
        {"made_by": {**MADE_BY, "model": {"name": 1, "commit": "0123", "fingerprint": "ab"}}},
        {"last_rounds": {}},
        {"last_rounds": [{"rounds": 1}]},
    ],
)
def test_a_manifest_that_is_damaged_is_named_and_its_file_left_as_it_was(
    damage: dict[str, Any], tmp_path: Path
) -> None:
    manifest = whole(tmp_path / "self.jsonl").manifest
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | damage))
    before = files(tmp_path)
    said = r"self\.manifest\.json: damaged.*; remove it and self\.jsonl and self\.rejected\.jsonl and generate again"
    with pytest.raises(InputError, match=said):
        Corpus(tmp_path / "self.jsonl").open(MADE_BY, 6)
    if "texts" in damage:
        with pytest.raises(InputError, match=said):
            Corpus(tmp_path / "self.jsonl").texts()
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", ['{"text"', "[]", '{"text": "a", "round": 0}', "{}"])
def test_a_line_that_is_damaged_is_named(damage: str, tmp_path: Path) -> None:
    corpus = whole(tmp_path / "self.jsonl")
    corpus.rejected.write_text(damage + "\n")
    with pytest.raises(InputError, match=r"self\.rejected\.jsonl: damaged"):
        corpus.teach([])


def test_a_manifest_that_is_none_is_named(tmp_path: Path) -> None:
    whole(tmp_path / "self.jsonl")
    for damage in ("{", "[]", json.dumps({"texts": 3})):
        (tmp_path / "self.manifest.json").write_text(damage)
        with pytest.raises(InputError, match=r"self\.manifest\.json: damaged"):
            Corpus(tmp_path / "self.jsonl").finished()


def test_a_name_that_is_no_file_of_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"expected a file that ends in \.jsonl"):
        Corpus(tmp_path / "texts.json")
    with pytest.raises(InputError, match="is a folder"):
        Corpus(tmp_path / "folder.jsonl")


@pytest.mark.parametrize("left", [None, 0, 20])
def test_a_file_that_lost_its_texts_is_not_said_to_be_whole(left: int | None, tmp_path: Path) -> None:
    path = whole(tmp_path / "self.jsonl").path
    content = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(content[:left])
    remedy = r"remove it and self\.rejected\.jsonl and self\.manifest\.json and generate again"
    for look in (Corpus.finished, Corpus.texts, lambda corpus: corpus.open(MADE_BY, 6)):
        with pytest.raises(InputError, match=rf"self\.jsonl: is missing, or shorter than it was; {remedy}"):
            look(Corpus(path))
    for name in ("self.jsonl", "self.rejected.jsonl", "self.manifest.json"):
        (tmp_path / name).unlink(missing_ok=True)
    assert list(whole(path).kept_texts()) == [one for found in ROUNDS for one in found.kept]


@pytest.mark.parametrize("left", [None, 20])
def test_a_whole_file_stays_whole_where_more_texts_are_refused(left: int | None, tmp_path: Path) -> None:
    corpus = whole(tmp_path / "self.jsonl")
    content = corpus.rejected.read_bytes()
    corpus.rejected.unlink()
    if left is not None:
        corpus.rejected.write_bytes(content[:left])
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"self\.rejected\.jsonl: is missing, or shorter than it was; remove it and"):
        Corpus(corpus.path).open(MADE_BY, 6)
    assert files(tmp_path) == before
    assert Corpus(corpus.path).finished() is not None
