"""`prune --self-generate N` has the model write its calibration samples, once, and uses their very tokens."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from reprune.doors.generation import generate, selfmade
from reprune.doors.prepare import open_decoder, settle
from reprune.math.ranks import ALONE
from reprune.model.block import Precision
from reprune.model.checkpoint import Checkpoint
from reprune.model.whole import whole_bytes
from reprune.planning.generation import corpus, rounds
from reprune.planning.layers import resolve_recipe
from reprune.planning.recipe import SelfGenerateRecipe
from reprune.planning.samples import Samples
from tests.doors.conftest import Cli
from tests.doors.generation.test_generate import lines, reads

OWN = [
    *("--self-generate", "6", "--seqlen", "12", "--epochs", "1", "--reconstruct", "LR", "--pruner", "wanda"),
    *("--device", "cpu", "--set", "precision=float32", "--set", "self_generate.filters=[duplicates]"),
    *("--set", "self_generate.batch_size=6"),
]


@pytest.fixture(autouse=True)
def half_is_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "language_of", reads)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "reprune.json").read_text())
    return found


def the_file(here: Path) -> Path:
    (found,) = (here.parent / "cache").glob("self-generated/*/7/self-generated.jsonl")
    return found


def test_a_model_is_calibrated_on_its_own_texts_alone(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Samples] = []
    from reprune.doors import prepare

    real = prepare.draw_samples
    monkeypatch.setattr(prepare, "draw_samples", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
    said = cli("prune", "llama", "--out", "out", *OWN)
    assert (said.code, said.err) == (0, "")
    assert "generating 7 texts, or finding them in the cache" in said.out
    made = record(here / "out")
    assert [(one["name"], one["count"], one["role"]) for one in made["data"]["sources"]] == [
        ("self-generated.jsonl", 6, "calibration"),
        ("self-generated.jsonl", 1, "heldout"),
    ]
    assert (made["recipe"]["calibration"], made["recipe"]["self_generate"]["samples"]) == ([], 6)
    assert [one["foreign_tokens"] for one in made["data"]["sources"]] == [0, 0]
    texts = [line["token_ids"] for line in lines(the_file(here))]
    assert len(texts) == 7
    assert all(11 <= len(ids) <= 22 for ids in texts), "long enough for a sample, twice as long at most"
    for row in [*drawn[0].calibration.tolist(), *drawn[0].heldout.tolist()]:
        assert row[0] == 1
        spans = [ids[start : start + 11] for ids in texts for start in range(len(ids) - 10)]
        assert row[1:] in spans, "a span of a text as it was written"


def test_texts_of_a_model_with_another_tokenizer_are_tokenized_with_a_note(here: Path, cli: Cli) -> None:
    texts = (here / "text.txt").read_text().split("\n\n")
    rows = [{"text": text, "token_ids": [5] * 40} for text in texts if len(text) > 100][:12]
    (here / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = "".join(json.dumps({"text": row["text"]}) + "\n" for row in rows)
    (here / "plain.jsonl").write_text(plain)
    flags = (*OWN[2:12], "--samples", "6", "--calibration")
    said = cli("prune", "llama", "--out", "one", *flags, "own.jsonl")
    assert (said.code, said.err) == (0, "")
    assert "source 'own.jsonl': some of its token ids do not decode to their texts" in " ".join(said.out.split())
    assert cli("prune", "llama", "--out", "two", *flags, "plain.jsonl").code == 0
    one, two = record(here / "one"), record(here / "two")
    assert one["data"]["sha256"] == two["data"]["sha256"]
    assert [source["foreign_tokens"] for source in one["data"]["sources"]] == [6, 1]


def test_texts_are_written_once_and_kept_by_all_that_decides_them(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("prune", "llama", "--out", "one", *OWN).code == 0
    before = the_file(here).stat().st_mtime_ns

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the texts are there already")

    with monkeypatch.context() as patch:
        patch.setattr("reprune.doors.generation.generate.LocalAuthor", never)
        assert cli("prune", "llama", "--out", "two", *OWN, "--pruner", "magnitude").code == 0
        assert cli("prune", "llama", "--out", "again", "--recipe", "one/recipe.yaml").code == 0
        shutil.copytree("llama", "renamed")
        assert cli("prune", "renamed", "--out", "by another name", *OWN).code == 0
    assert the_file(here).stat().st_mtime_ns == before
    for file in (here / "one").glob("*.safetensors"):
        one, again = load_file(file), load_file(here / "again" / file.name)
        assert all(one[key].equal(again[key]) for key in one)
    assert cli("prune", "llama", "--out", "three", *OWN, "--seed", "1").code == 0
    assert len(list((here.parent / "cache" / "self-generated").iterdir())) == 2
    tokenizer = shutil.copytree("llama", here / "other" / "llama") / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert cli("prune", "other/llama", "--out", "four", *OWN).code == 0
    assert len(list((here.parent / "cache" / "self-generated").iterdir())) == 3
    assert cli("prune", "llama", "--out", "five", *OWN, "--set", "precision=bfloat16").code == 0
    manifests = (here.parent / "cache" / "self-generated").glob("*/all.manifest.json")
    written = [json.loads(file.read_text(encoding="utf-8"))["made_by"]["precision"] for file in manifests]
    assert sorted(written) == ["bfloat16", *["float32"] * 3]


def test_texts_are_held_out_beside_those_asked_for_unless_a_source_is_named_for_that() -> None:
    assert selfmade.texts_of(resolve_recipe("model", {"self_generate": 9})) == 9 + 2
    assert selfmade.texts_of(resolve_recipe("model", {"self_generate": 9, "heldout": "manual"})) == 9
    assert selfmade.texts_of(resolve_recipe("model")) == 0


def test_more_texts_go_on_from_fewer_and_fewer_are_the_first(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(generate, "draft", lambda *given: begun.append(given[-1]) or rounds.draft(*given))
    (folder,), number = [here.parent / "cache" / "self-generated"], {}
    for asked, out in ((6, "six"), (20, "twenty"), (10, "ten"), (6, "again")):
        assert cli("prune", "llama", "--out", out, *OWN, "--self-generate", str(asked)).code == 0
        number[out] = len(begun)
    assert number["twenty"] > number["six"] and number["again"] == number["ten"] == number["twenty"]
    assert begun == sorted(begun) and len(begun) <= max(begun) + 2, "only a round that was cut short is done again"
    (one,) = folder.iterdir()
    found = {count: lines(one / str(count) / "self-generated.jsonl") for count in (7, 12, 23)}
    assert {count: len(texts) for count, texts in found.items()} == {7: 7, 12: 12, 23: 23}
    assert found[7] == found[23][:7] and found[12] == found[23][:12]
    for file in (here / "six").glob("*.safetensors"):
        first, again = load_file(file), load_file(here / "again" / file.name)
        assert all(first[key].equal(again[key]) for key in first)


def test_they_are_added_to_other_sources(here: Path, cli: Cli) -> None:
    flags = [*OWN, "--calibration", "text.txt=4", "--heldout", "text.txt=2"]
    assert cli("prune", "llama", "--out", "out", *flags).code == 0
    sources = [(one["name"], one["count"], one["role"]) for one in record(here / "out")["data"]["sources"]]
    assert sources == [
        ("text.txt", 4, "calibration"),
        ("self-generated.jsonl", 6, "calibration"),
        ("text.txt", 2, "heldout"),
    ]
    recipe = yaml.safe_load((here / "out" / "recipe.yaml").read_text())
    assert recipe["self_generate"]["samples"] == 6
    assert str(here) not in (here / "out" / "recipe.yaml").read_text()


def test_a_record_has_what_the_writing_took_and_a_plan_says_that_there_is_some(here: Path, cli: Cli) -> None:
    line = "generation 7 texts, which the model writes first"
    assert line in cli("plan", "llama", *OWN).out
    said = cli("prune", "llama", "--out", "one", *OWN)
    assert "generation     7 texts beforehand, " in said.out
    made = record(here / "one")
    own = made["self_generation"]
    assert own["texts"] == 7
    assert own["seconds"] > 0
    assert all(made["peak_memory_bytes"][key] >= peak for key, peak in own["peak_memory_bytes"].items())
    assert "which the model writes" not in cli("plan", "llama", *OWN).out
    assert cli("prune", "llama", "--out", "two", *OWN).code == 0
    assert record(here / "two")["self_generation"] is None, "they were in the cache"


def test_a_model_that_writes_is_counted_as_a_whole(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(tensor.numel() * 4 for tensor in load_file(here / "llama" / "model.safetensors").values())
    assert whole_bytes(Checkpoint(here / "llama"), Precision()) == whole
    monkeypatch.setattr("reprune.doors.prepare.available_memory", lambda _: whole - 1)
    said, planned = cli("prune", "llama", "--out", "out", *OWN), cli("plan", "llama", *OWN)
    assert said.code == planned.code == 2
    assert "--self-generate 6: the whole model, which writes the texts, takes at least" in said.err
    assert planned.err == said.err
    monkeypatch.setattr("reprune.doors.prepare.available_memory", lambda _: whole)
    assert cli("prune", "llama", "--out", "out", *OWN).code == 0
    monkeypatch.setattr("reprune.doors.prepare.available_memory", lambda _: whole - 1)
    assert cli("prune", "llama", "--out", "again", *OWN).code == 0, "nothing is to be written any more"


@pytest.mark.parametrize("command", [["prune", "llama", "--out", "out"], ["plan", "llama", "-q"]])
def test_without_a_home_it_is_said_where_to_keep_them(
    command: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: int) -> None:
        raise KeyError

    for name in ("REPRUNE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", none)
    said = cli(*command, *OWN)
    assert (said.code, said.err) == (
        2,
        "error: there is no place for the cache (Could not determine home directory); set REPRUNE_CACHE to a folder.\n",
    )


@pytest.mark.parametrize(("cache", "why"), [("afile/cache", "Not a directory"), ("x" * 300, "File name too long")])
def test_a_cache_that_cannot_be_made_is_said(
    cache: str, why: str, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "afile").touch()
    monkeypatch.setenv("REPRUNE_CACHE", cache)
    said = cli("prune", "llama", "--out", "out", *OWN)
    assert (said.code, said.err) == (
        2,
        f"error: {here / cache}: cannot be used for the cache ({why}); set REPRUNE_CACHE to another folder.\n",
    )


def test_a_cache_whose_files_may_not_be_written_is_said(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system would say it of another user's, which lets root write everywhere."""

    def touch(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch", touch)
    said = cli("prune", "llama", "--out", "out", *OWN)
    why = f"cannot be used for the cache ({os.strerror(errno.EACCES)}); set REPRUNE_CACHE to another folder.\n"
    assert (said.code, said.err) == (2, f"error: {here.parent / 'cache'}: {why}")


def test_texts_in_a_cache_that_may_only_be_read_are_used(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as another user's, or one on a disk that is mounted so."""
    assert cli("prune", "llama", "--out", "one", *OWN).code == 0
    opened = Path.open

    def only_read(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if {*mode} - {*"rb"} and path.is_relative_to(here.parent / "cache"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", only_read)
    assert cli("prune", "llama", "--out", "two", *OWN).code == 0
    more = cli("prune", "llama", "--out", "three", *OWN, "--self-generate", "9")
    assert (more.code, "cannot be used for the cache (Read-only file system)" in more.err) == (2, True)


def test_a_cache_without_locks_may_be_elsewhere(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a home folder on a cluster's disk."""

    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    said = cli("prune", "llama", "--out", "out", *OWN)
    assert said.code == 2
    assert said.err.endswith(
        "this cache cannot be locked against other processes here (No locks available); set REPRUNE_CACHE to a folder "
        "on another disk.\n"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_cache_that_is_full_may_be_elsewhere(
    number: int, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, _: str) -> None:
        raise OSError(number, os.strerror(number), str(file))

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "append_line", full)
        said = cli("prune", "llama", "--out", "out", *OWN, "-q")
    (file,) = (here.parent / "cache").glob("self-generated/*/all.jsonl")
    why = f"{os.strerror(number)}; make room and give the same command again, or set REPRUNE_CACHE to another folder"
    assert (said.code, said.err) == (1, f"error: {why}: {file}\n")
    assert not (here / "out").exists()
    assert cli("prune", "llama", "--out", "out", *OWN, "-q").code == 0


def test_the_pruners_statistics_can_be_of_the_first_source_alone(here: Path, cli: Cli) -> None:
    """With wanda and LR, samples only enter the statistics: more samples of other sources then change nothing."""
    plain = ["prune", "llama", "--pruner", "wanda", "--reconstruct", "LR", "--seqlen", "12", "--device", "cpu"]
    plain += ["--set", "precision=float32", "--heldout", "manual=1"]
    (here / "other.txt").write_text("0 1 2 3 4 5 6 7 8 9 " * 200)
    runs = {
        "alone": ["--calibration", "text.txt=4"],
        "first": ["--calibration", "text.txt=4", "other.txt=9", "--set", "pruner.statistics=first"],
        "all": ["--calibration", "text.txt=4", "other.txt=9"],
    }
    weights = {}
    for name, flags in runs.items():
        assert cli(*plain, "--out", name, *flags).code == 0
        files = sorted((here / name).glob("*.safetensors"))
        weights[name] = {key: tensor for file in files for key, tensor in load_file(file).items()}
    assert all(weights["alone"][key].equal(weights["first"][key]) for key in weights["alone"])
    assert not all(weights["alone"][key].equal(weights["all"][key]) for key in weights["alone"])


def test_the_settings_are_the_recipes(here: Path) -> None:
    content = {"self_generate": {"samples": 3, "temperature": 0.7, "filters": []}, "seqlen": 16, "device": "cpu"}
    recipe = settle(resolve_recipe("llama", content, {}, ["self_generate.length=30", "seed=5"]))
    settings = recipe.self_generate.build(15, 127, recipe.seed)
    assert (settings.temperature, settings.length, settings.least, settings.seed) == (0.7, 30, 15, 5)
    plain = SelfGenerateRecipe(samples=3)
    assert [plain.build(tokens, most, 0).length for tokens, most in ((100, 127), (40, 127), (100, None))] == [
        127,
        80,
        200,
    ]
    assert recipe.self_generate.build(100, 127, 0).length == 100, "a text is long enough for a sample"
    assert recipe.calibration == []
    decoder = open_decoder(recipe, here / "llama")
    assert selfmade.self_generated(resolve_recipe("llama"), decoder, selfmade.Watcher(), ALONE) is None


def test_texts_are_kept_apart_by_all_that_decides_them_and_fit_the_model(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = settle(resolve_recipe("llama", {"self_generate": 3, "seqlen": 128, "device": "cpu"}))
    decoder = open_decoder(recipe, here / "llama")
    place = selfmade._Place.of(recipe, decoder)
    assert (place.settings.length, place.settings.least) == (127, 127), "beside BOS"
    folders = {place.folder}
    for change in ({"device": "cuda"}, {"precision": "float16"}, {"seed": 1}, {"seqlen": 64}):
        folders.add(selfmade._Place.of(recipe.model_copy(update=change), decoder).folder)
    monkeypatch.setattr(selfmade, "versions", lambda: {"torch": "1.0"})
    folders.add(selfmade._Place.of(recipe, decoder).folder)
    assert len(folders) == 6


def test_texts_of_which_only_a_part_could_be_written_are_written_again(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def half(path: Path, text: str, **options: Any) -> int:
        if selfmade.OWN_TEXTS not in path.name:
            return write(path, text, **options)
        write(path, text[: len(text) // 2], **options)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        assert cli("prune", "llama", "--out", "out", *OWN).code == 1
    assert cli("prune", "llama", "--out", "out", *OWN).code == 0
    assert len(lines(the_file(here))) == 7
